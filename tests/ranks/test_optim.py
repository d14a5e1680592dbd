"""Rules, schedules and loss scale on real ranks: the same run on every layout and ZeRO stage, and after a resume."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_alexnet.checkpoint.commit import read_commit
from dist_alexnet.checkpoint.finding import resolve
from dist_alexnet.track.jsonl import live_lines, starts
from dist_alexnet.track.keys import AXES, KEYS, key_of
from tests.ranks.harness import Case, difference, losses, run_cases, tensors

COLUMNS, REPLICAS = "parallel.columns=2", "parallel.replicas=2"
EVERY_STEP = ("checkpoint.every_steps=1", "checkpoint.keep=99")


def zero(stage: int) -> str:
    return f"parallel.zero_stage={stage}"


def micro(images: int) -> str:
    return f"parallel.micro_batch={images}"


LARS = ("optimizer.name=lars", "optimizer.lr=0.008", "optimizer.trust=0.1", "run.steps=8")
RULES: dict[str, tuple[str, ...]] = {
    "lars": LARS,
    "clipped": (*LARS, "optimizer.clip_norm=0.5"),
    # eps as large as small gradients: below it AdamW makes whole steps of their rounding.
    "adamw": ("optimizer.name=adamw", "optimizer.lr=0.0001", "optimizer.eps=1e-3", "run.steps=8"),
    "sgd": ("optimizer.name=sgd", "optimizer.nesterov=true", "run.steps=8", "log.peak_tflops=0.5"),
    "manual": (
        "schedule.name=manual",
        "schedule.phases=[{epoch: 0.5, weights: 0.002}, {epoch: 0.9, layers: [conv1], weights: 0, biases: 0}]",
        "run.steps=8",
        *EVERY_STEP,
    ),
    "dexp": ("schedule.name=dexp", "schedule.bias_fall=2", "schedule.warmup_epochs=0.3", "run.steps=8"),
}
LAYOUTS: dict[int, dict[str, tuple[str, tuple[str, ...]]]] = {  # world: name: (rule, overrides)
    1: {
        "lars-accumulate-zero-2": ("lars", (zero(2), micro(6))),
        "adamw-zero-3": ("adamw", (zero(3),)),
    },
    2: {
        **{f"lars-data-zero-{stage}": ("lars", (zero(stage),)) for stage in (0, 1, 2)},
        **{f"lars-columns-zero-{stage}": ("lars", (COLUMNS, zero(stage))) for stage in (0, 1)},
        **{f"lars-replicas-zero-{stage}": ("lars", (REPLICAS, zero(stage))) for stage in (0, 2)},
        **{f"adamw-data-zero-{stage}": ("adamw", (zero(stage), micro(6))) for stage in (0, 1, 2, 3)},
        "adamw-columns-zero-2": ("adamw", (COLUMNS, zero(2))),
        "adamw-replicas-zero-3": ("adamw", (REPLICAS, zero(3))),
        "clipped-data-zero-2": ("clipped", (zero(2),)),
        "sgd-data-zero-2": ("sgd", (zero(2),)),
        "manual-replicas-zero-1": ("manual", (REPLICAS, zero(1))),
        "manual-data-zero-3": ("manual", (zero(3),)),
        "dexp-columns-zero-1": ("dexp", (COLUMNS, zero(1))),
    },
    4: {
        **{f"lars-grid-zero-{stage}": ("lars", (COLUMNS, REPLICAS, zero(stage))) for stage in (0, 1, 2)},
        "lars-data-replicas-zero-1": ("lars", (REPLICAS, zero(1), micro(6))),
        "lars-data-columns-zero-2": ("lars", (COLUMNS, zero(2))),
        **{f"clipped-grid-zero-{stage}": ("clipped", (COLUMNS, REPLICAS, zero(stage))) for stage in (0, 1)},
        **{f"adamw-grid-zero-{stage}": ("adamw", (COLUMNS, REPLICAS, zero(stage))) for stage in (0, 1, 3)},
        "adamw-data-replicas-zero-2": ("adamw", (REPLICAS, zero(2), micro(6))),
        "sgd-grid-zero-1": ("sgd", (COLUMNS, REPLICAS, zero(1))),
        "manual-data-replicas-zero-2": ("manual", (REPLICAS, zero(2), micro(6))),
        "dexp-data-columns-zero-2": ("dexp", (COLUMNS, zero(2))),
    },
}
OTHERS = [(name, rule) for cases in LAYOUTS.values() for name, (rule, _) in cases.items()]


@pytest.fixture(scope="module")
def ran(config: Path, runs: Path) -> Path:
    """Every rule on its layouts: one start of torchrun a world size."""
    references = [Case(f"{rule}-reference", overrides) for rule, overrides in RULES.items()]
    for world, named in LAYOUTS.items():
        cases = [Case(name, (*RULES[rule], *overrides)) for name, (rule, overrides) in named.items()]
        run_cases(world, config, [*(references if world == 1 else []), *cases], timeout_s=600)
    return runs


@pytest.mark.parametrize(("name", "rule"), OTHERS)
def test_the_same_run(ran: Path, name: str, rule: str) -> None:
    assert losses(ran / name) == pytest.approx(losses(ran / f"{rule}-reference"), rel=1e-4)
    assert difference(ran / name, ran / f"{rule}-reference") < 1e-4


@pytest.mark.parametrize(("name", "rule"), OTHERS)
def test_the_same_norms(ran: Path, name: str, rule: str) -> None:
    """Of gradient, weights and update: first to the rounding of one step, then as the losses are."""
    found, expected = norms_of(ran / name), norms_of(ran / f"{rule}-reference")
    assert all(len(line) > 2 + 2 * 16 for line in expected)  # biases that are still 0 have no ratio
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for here, there in zip(found, expected, strict=True):
        assert here == pytest.approx(there, rel=1e-4)


def norms_of(run: Path) -> list[dict[str, float]]:
    """Of every line of training; "inf" and "nan" compare with nothing."""
    return [
        {key: value for key, value in line.items() if key.startswith(("norm/", "optim/update_ratio/"))}
        for line in lines_of(run)
        if "train/loss" in line
    ]


def test_norms_are_of_the_weights_that_are_saved(ran: Path) -> None:
    """Of both sides of a step, in fp64; what stands still has no update."""
    run = ran / "manual-replicas-zero-1"
    steps = [tensors(run / "checkpoints" / f"step-{step:08d}") for step in range(1, 9)]
    for before, after, line in zip(steps, steps[1:], norms_of(run)[1:], strict=False):
        for name in (key for key in after if key.endswith("/weight")):
            norm, key = after[name].double().norm().item(), name.removesuffix("/weight")
            moved = (after[name].double() - before[name].double()).norm().item()
            assert line[f"norm/weight/{key}"] == pytest.approx(norm, rel=1e-6)
            assert line[f"optim/update_ratio/{key}"] == pytest.approx(moved / norm, rel=1e-4)
    assert norms_of(run)[7]["optim/update_ratio/conv1.weight"] == 0 < norms_of(run)[7]["norm/gradient/conv1.weight"]


def test_clipping_comes_after_the_norm(ran: Path) -> None:
    assert max(line["norm/gradient"] for line in norms_of(ran / "clipped-reference")) > 2 * 0.5


def test_every_key_is_in_the_table(ran: Path) -> None:
    """And every key of the table that is always there, is there."""
    always = {key for key in KEYS if key.always}
    for run in ("sgd-reference", "adamw-data-zero-3", "lars-grid-zero-1", "manual-data-replicas-zero-2"):
        for line in lines_of(ran / run):
            keys = {key_of(name) for name in line if name not in (*AXES, "generation")}
            here = {key for key in always if (key.section == "validation") == ("val/loss" in line)}
            assert here <= keys, (run, line)
            assert None not in keys, (run, line)
    assert all(("speed/mfu" in line) == ("train/loss" in line) for line in lines_of(ran / "sgd-data-zero-2"))


def test_rules_differ(ran: Path, config: Path) -> None:
    """The comparisons can fail: another rule moves the weights elsewhere, and each rule has the state it says."""
    whole = {rule: tensors(ran / f"{rule}-reference") for rule in RULES}
    for rule, values in whole.items():
        kinds = {name.rpartition("/")[2] for name in values}
        assert kinds == ({"weight", "momentum", "square"} if rule == "adamw" else {"weight", "momentum"})
        others = [other for other in whole if other != rule]
        apart = [difference_of_weights(values, whole[other]) for other in others]
        assert min(apart) > 1e-3, dict(zip(others, apart, strict=True))


def difference_of_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    names = [name for name in one if name.endswith("/weight")]
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in names)


SAVED = "adamw-grid-zero-1"
TAKEN_UP = {1: (zero(3),), 2: (zero(2),), 4: (COLUMNS, zero(1))}  # world: layout


@pytest.fixture(scope="module")
def taken_up(config: Path, runs: Path) -> Path:
    """AdamW saved after 4 of 8 steps on 2 x 2 under ZeRO 1, and taken up on three other layouts."""
    rule = [one for one in RULES["adamw"] if not one.startswith("run.steps")]
    cases = [Case(f"half-{world}", (*rule, COLUMNS, REPLICAS, zero(1), "run.steps=4")) for world in TAKEN_UP]
    run_cases(4, config, cases)
    for world, layout in TAKEN_UP.items():
        again = Case(f"again-{world}", (*rule, *layout, f"run.name=half-{world}", "run.steps=4"), "save_again")
        run_cases(world, config, [again, Case(f"half-{world}", (*rule, *layout, "run.steps=8"))])
    return runs


@pytest.mark.parametrize("world", TAKEN_UP)
def test_another_layout_takes_up_square_and_count(ran: Path, taken_up: Path, world: int) -> None:
    """All state bit for bit, and then the unbroken run's: a step count that starts anew would be seen at once."""
    half, again = (
        taken_up / f"half-{world}" / "checkpoints" / "step-00000004",
        taken_up / f"again-{world}" / "checkpoints" / "step-00000004",
    )
    here, there = tensors(half), tensors(again)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)
    assert all(values.max() > 0 for name, values in here.items() if name.endswith("weight/square"))
    assert difference(taken_up / f"half-{world}", ran / "adamw-reference") < 1e-4
    assert losses(taken_up / f"half-{world}") == pytest.approx(losses(ran / "adamw-reference"), rel=1e-4)
    assert state_of(taken_up / f"half-{world}")["engine"] == {"updates": 8, "loss_scale": None}


NORMALISED = ("network.name=alexnet-bn", "run.steps=4")
CARRIED = {1: (), 2: (REPLICAS, zero(2)), 3: (zero(1),), 4: (COLUMNS, zero(3))}  # world: layout


@pytest.fixture(scope="module")
def carried(config: Path, runs: Path) -> Path:
    """Batch norm's running statistics, saved on 2 x 2 and on 2 columns x 2 data, loaded elsewhere."""
    saves = {"bn-grid": (COLUMNS, REPLICAS, zero(1)), "bn-data": (COLUMNS, zero(2))}
    run_cases(4, config, [Case(name, (*NORMALISED, *layout)) for name, layout in saves.items()])
    for world, layout in CARRIED.items():
        again = [
            Case(f"{name}-again-{world}", (*NORMALISED, *layout, f"run.name={name}"), "save_again") for name in saves
        ]
        run_cases(world, config, again)
    return runs


@pytest.mark.parametrize("name", ["bn-grid", "bn-data"])
def test_running_statistics_are_saved_once_and_loaded_anywhere(carried: Path, name: str) -> None:
    """The table of contents holds each element once (else reading it fails), and every layout gives back its bits."""
    here = tensors(carried / name)
    statistics = [key for key in here if key.endswith("/statistic")]
    assert len(statistics) == 10  # mean and variance after 5 convolutions
    assert all(here[key].unique().numel() > 1 for key in statistics)
    for world in CARRIED:
        again = tensors(carried / f"{name}-again-{world}")
        assert again.keys() == here.keys()
        assert all(torch.equal(again[key], here[key]) for key in here)


def state_of(run: Path) -> dict[str, Any]:
    return read_commit(resolve(run)).state


def lines_of(run: Path) -> list[dict[str, Any]]:
    return list(live_lines(run / "metrics.jsonl", starts(run / "attempts.jsonl")))


@pytest.mark.parametrize("name", ["manual-reference", "manual-replicas-zero-1", "manual-data-zero-3"])
def test_a_frozen_layer_is_not_touched(ran: Path, name: str) -> None:
    """conv1 stands still from the step that begins past epoch 0.9 on (24 images of 131 a step), momentum included."""
    steps = [tensors(ran / name / "checkpoints" / f"step-{step:08d}") for step in range(1, 9)]
    for kind in ("weight", "momentum"):
        for role in ("weight", "bias"):
            for layer in ("conv1", "conv2"):
                path = [step[f"{layer}.{role}/{kind}"] for step in steps]
                still = [torch.equal(one, other) for one, other in itertools.pairwise(path)]
                assert still == [False] * 4 + [layer == "conv1"] * 3
    rates = [
        {key.removeprefix("optim/"): value for key, value in line.items() if key.startswith("optim/lr")}
        for line in lines_of(ran / name)
        if "train/loss" in line
    ]
    biases = [f"lr/{layer}.bias" for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")]
    assert rates[:3] == [{"lr": 0.001}] * 3  # biases at the network's multiple: not worth a line
    assert rates[3:5] == [{"lr": 0.002, **dict.fromkeys(biases, 0.002)}] * 2
    assert rates[5:] == [{"lr": 0.002, **dict.fromkeys(biases, 0.002), "lr/conv1.weight": 0, "lr/conv1.bias": 0}] * 3


COUNTED = {
    2: {f"counted-zero-{stage}-{images}": (REPLICAS, zero(stage), micro(images)) for stage, images in
        ((0, 24), (0, 6), (1, 6), (2, 6), (3, 6))},
    4: {f"counted-data-zero-{stage}": (REPLICAS, zero(stage), micro(3 * 2)) for stage in (0, 2, 3)},
}  # fmt: skip
FP16 = ("precision=fp16", "run.steps=4", *EVERY_STEP)
SPOILT = [(2, "data", (zero(0),)), (2, "replicas", (REPLICAS, zero(1))), (2, "data-2", (zero(2),))]
SPOILT += [(4, "grid", (COLUMNS, REPLICAS, zero(0))), (4, "grid-3", (COLUMNS, REPLICAS, zero(3), micro(12)))]


@pytest.fixture(scope="module")
def looked_into(config: Path, runs: Path) -> Path:
    for world in (1, 2, 4):
        cases = [Case(name, ("run.steps=3", *over), "counted") for name, over in COUNTED.get(world, {}).items()]
        cases += [
            Case(f"spoilt-{name}", (*FP16, *layout), "overflowing", {"steps": [3], "rank": world - 1})
            for ranks, name, layout in SPOILT
            if ranks == world
        ]
        if world == 1:
            at_3, at_1 = {"steps": [3], "rank": 0}, {"steps": [1], "rank": 0}
            cases += [
                Case("fp16-reference", FP16),
                Case("fp16-bf16", ("precision=bf16", "run.steps=4")),
                Case("fp16-full", ("run.steps=4",)),
                Case("spoilt-reference", FP16, "overflowing", at_3),
                Case("spoilt-resumed", (*FP16, "run.steps=2"), "overflowing", at_3),
                Case("spoilt-resumed", FP16, "overflowing", at_1),
            ]
        run_cases(world, config, cases, timeout_s=600, module="tests.ranks.optim_cases")
    return runs


@pytest.mark.parametrize(("world", "name"), [(world, name) for world, cases in COUNTED.items() for name in cases])
def test_replicas_sum_once_a_step(looked_into: Path, world: int, name: str) -> None:
    """One all-reduce of all convolutions, whatever the accumulation; under ZeRO of this data rank's part of them."""
    for rank in range(world):
        found = json.loads((looked_into / f"{name}-{rank}.json").read_text())
        assert len(found["elements"]) == 3
        stage = int(name.split("zero-")[1][0])
        most = found["held"] if stage == 0 or world == 2 else found["held"] // 2
        assert all(most <= count <= most + 200 for count in found["elements"])  # and ZeRO's padding


@pytest.mark.parametrize("name", ["reference", *(name for _, name, _ in SPOILT)])
def test_a_dropped_step_has_no_gradient_and_no_update(looked_into: Path, name: str) -> None:
    """The others' are the same on every layout, of the loss as it is and not as it was scaled."""
    found, expected = norms_of(looked_into / f"spoilt-{name}"), norms_of(looked_into / "spoilt-reference")
    assert [len(line) for line in found] == [2 + 3 * 16, 2 + 3 * 16, 1 + 16, 2 + 3 * 16]
    assert found[2]["norm/weight"] == found[1]["norm/weight"]
    full = norms_of(looked_into / "fp16-full")[0]
    for other in (expected[0], full):
        assert found[0]["norm/gradient"] == pytest.approx(other["norm/gradient"], rel=0.02)


@pytest.mark.parametrize("name", ["reference", *(name for _, name, _ in SPOILT)])
def test_an_overflow_on_one_rank_drops_the_step_on_all(looked_into: Path, name: str) -> None:
    """Step 3: weights and momentum stay bit for bit, the scale halves, and the run goes on."""
    run = looked_into / f"spoilt-{name}"
    steps = [tensors(run / "checkpoints" / f"step-{step:08d}") for step in (1, 2, 3, 4)]
    same = [all(torch.equal(one[key], other[key]) for key in one) for one, other in itertools.pairwise(steps)]
    assert same == [False, True, False]
    found = [
        (line["optim/loss_scale"], line["train/dropped_steps"]) for line in lines_of(run) if "optim/loss_scale" in line
    ]
    assert found == [(65536, 0), (65536, 0), (32768, 1), (32768, 1)]
    scale = {"scale": 32768.0, "good_steps": 1, "dropped_steps": 1}
    assert state_of(run)["engine"] == {"updates": 3, "loss_scale": scale}
    assert losses(run) == pytest.approx(losses(looked_into / "spoilt-reference"), rel=1e-3)


def test_the_scale_goes_on_after_a_resume(looked_into: Path) -> None:
    """2 steps, then a start whose first step is dropped: bit for bit the run that was not broken off."""
    whole, resumed = looked_into / "spoilt-reference", looked_into / "spoilt-resumed"
    assert losses(resumed) == losses(whole)
    assert difference(resumed, whole) == 0
    assert state_of(resumed)["engine"] == state_of(whole)["engine"]


def test_fp16_is_near_fp32(looked_into: Path) -> None:
    """bf16 has 3 bits less: 8 times nearer where nothing but products lies between (the last layer), no scale left in.

    Below, what counts is how many units and pools rounding sends the other way, so the distance goes with its root.
    """
    fp16, bf16, full = (tensors(looked_into / f"fp16-{name}") for name in ("reference", "bf16", "full"))
    assert all(values.dtype == torch.float32 for values in fp16.values())
    assert losses(looked_into / "fp16-reference") == pytest.approx(losses(looked_into / "fp16-full"), rel=1e-3)
    for names, nearer in (([name for name in full if "fc8" in name], 4), (list(full), 1.5)):
        fp16_off, bf16_off = (
            sum(float((half[name] - full[name]).norm() / full[name].norm()) for name in names) for half in (fp16, bf16)
        )
        assert 0 < fp16_off < bf16_off / nearer


def test_plateau_goes_on_after_a_resume(config: Path, runs: Path) -> None:
    """Evaluated every 2 steps, none better by 2: half the rate after each but the first; the one at a stop is extra."""
    chosen = ("schedule.name=plateau", "schedule.factor=0.5", "schedule.patience=1", "schedule.threshold=2")
    over = (*chosen, "evaluate.every_steps=2", "run.name=plateau")
    run_cases(2, config, [Case("plateau", (*over, "run.steps=5", COLUMNS))])
    run_cases(1, config, [Case("plateau", (*over, "run.steps=9"))])
    rates = [line["optim/lr"] for line in lines_of(runs / "plateau") if "optim/lr" in line]
    assert rates == [0.001] * 4 + [0.0005] * 2 + [0.00025] * 2 + [0.000125]
    assert state_of(runs / "plateau")["plateau"]["drops"] == 3
