"""A step goes wrong on one rank: all agree, before a weight is touched, and the run stops, skips it, or goes back.

The steps see 24 pictures each: step 4 those at positions 72 to 95.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_alexnet.track.jsonl import live_lines, read_lines, starts
from tests.ranks.harness import Case, difference, keys_by_position, losses, run_cases, sightings, tensors

STAGES = (0, 1, 2, 3)
COLUMNS, REPLICAS, CUT = "parallel.columns=2", "parallel.replicas=2", "parallel.micro_batch=6"
SAVING, SELDOM = ("run.steps=6", "checkpoint.every_steps=2"), ("run.steps=7", "checkpoint.every_steps=3")
STOP, SKIP, BACK = (f"divergence.not_finite={action}" for action in ("stop", "skip", "rollback"))
BAD: dict[str, Any] = {"positions": [79], "gradient": "conv3"}  # in step 4
NAN: dict[str, Any] = {"positions": [79], "pixels": float("nan")}
LOUD: dict[str, Any] = {"positions": list(range(72, 96)), "times": 4}
SPIKE = ("divergence.spike.factor=1.5", "divergence.spike.window_steps=3")
NORMS = ("network.name=alexnet-bn", "parallel.zero_stage=2")
LEFT = [*range(48), *range(96, 192)]  # positions that a run rolled back to step 2 sees in 6 steps


def zero(stage: int) -> str:
    return f"parallel.zero_stage={stage}"


def case(name: str, *over: str, **extra: Any) -> Case:
    return Case(name, over, "spoilt_train", extra)


def again(name: str, first: Case, *over: str, **extra: Any) -> Case:
    """The same run once more."""
    return Case(name, (*first.overrides, f"run.name={first.name}", *over), "spoilt_train", {**first.extra, **extra})


def on_two_ranks(runs: Path) -> list[Case]:
    found = [case("stops-nan", *SAVING, STOP, **NAN)]
    for stage in STAGES:
        cut = (CUT,) if stage % 2 == 0 else ()
        each = (zero(stage), *cut)
        hand = case(f"hand-{stage}", "run.steps=2", *each)
        found += [
            case(f"stops-{stage}", "run.steps=4", "checkpoint.every_steps=1", *each, STOP, **BAD),
            case(f"skips-{stage}", "run.steps=5", "checkpoint.every_steps=1", "checkpoint.keep=9", *each, SKIP, **BAD),
            case(f"back-{stage}", *SAVING, *each, BACK, **BAD),
            hand,
            again(f"by-{hand.name}", hand, "run.steps=6", skipped=[48, 96, "by hand"]),
            case(f"start-{stage}", "run.steps=2", *each, BACK, positions=[30], gradient="fc7"),
            case(f"start-by-hand-{stage}", "run.steps=2", *each, skipped=[0, 48, "by hand"]),
        ]
    killed = case("killed", *SELDOM, BACK, "data.workers=1", **BAD, left=[2, 5])
    further = case("further", *SAVING)
    short = case("short", *SELDOM, "run.steps=6", BACK, **BAD)
    return [
        *found,
        case("unbroken", *SELDOM, BACK, **BAD),
        killed,
        again("killed-again", killed, left=None),
        further,
        again("further-again", further, BACK, **BAD, resume=str(step(runs / "further", 2))),
        short,
        again("short-again", short, "run.steps=7"),
        case("columns", *SAVING, COLUMNS, zero(1), BACK, **NAN),
        case("replicas", *SAVING, REPLICAS, BACK, **NAN),
        case("twice", *SAVING, BACK, positions=[79, 125], gradient="conv3"),
        case("too-often", *SAVING, BACK, "divergence.max_rollbacks=1", positions=[79, 125], gradient="conv3"),
        case("in-a-row", *SAVING, SKIP, "divergence.max_skipped_in_a_row=1", positions=[55, 79], gradient="conv3"),
        case("in-all", *SAVING, SKIP, "divergence.max_skipped_steps=1", positions=[30, 79], gradient="conv3"),
        *(case(f"steep-{stage}", "run.steps=2", SKIP, zero(stage), positions=[30], times=1e30) for stage in STAGES),
        case("huge", *SAVING, BACK, "optimizer.lr=1e6", "log.every_steps=50"),
        case("loud-back", *SAVING, *SPIKE, "divergence.spike.action=rollback", **LOUD),
        case("loud-skips", *SAVING, *SPIKE, "divergence.spike.action=skip", **LOUD),
        case("loud-stops", *SAVING, *SPIKE, **LOUD),
        case("half-least", *SAVING, STOP, "precision=fp16", **BAD, scale=2.0**-14),
        case("start-norms", "run.steps=2", *NORMS, BACK, positions=[30], gradient="conv5"),
        case("start-norms-by-hand", "run.steps=2", *NORMS, skipped=[0, 48, "by hand"]),
        case("half", *SAVING, SKIP, "precision=fp16", **NAN),
        case("half-scales", *SAVING, STOP, "precision=fp16", **BAD),
    ]


@pytest.fixture(scope="module")
def two(config: Path, runs: Path) -> Path:
    """The folder of what the ranks said."""
    run_cases(2, config, on_two_ranks(runs), timeout_s=600, module="tests.ranks.divergence_cases")
    return config.parent / "divergence"


@pytest.fixture(scope="module")
def others(config: Path, two: Path) -> Path:
    """The same on one rank and on four, and a run of two ranks that goes on on one."""
    alone = [
        case("back-alone", *SAVING, BACK, **BAD),
        case("loud-alone", *SAVING, *SPIKE, "divergence.spike.action=rollback", **LOUD),
        case("goes-on", "run.steps=8", "run.name=back-3"),
    ]
    run_cases(1, config, alone, module="tests.ranks.divergence_cases")
    four = [case("grid", *SAVING, COLUMNS, zero(2), BACK, **NAN)]
    run_cases(4, config, four, module="tests.ranks.divergence_cases")
    return two


def said(two: Path, name: str, error: str | None = None) -> str:
    """What rank 0 says it died of; the other rank says the same."""
    ranks = [json.loads((two / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["error"] for rank in ranks] == [error, error]
    assert ranks[0]["said"] == ranks[1]["said"]
    return str(ranks[0]["said"])


def same(one: Path, other: Path) -> bool:
    here, there = tensors(one), tensors(other)
    assert here.keys() == there.keys()
    return all(torch.equal(here[key], there[key]) for key in here)


def step(run: Path, number: int) -> Path:
    return run / "checkpoints" / f"step-{number:08d}"


def dropped(run: Path) -> list[float]:
    lines = live_lines(run / "metrics.jsonl", starts(run / "attempts.jsonl"))
    return [line["train/dropped_steps"] for line in lines if "train/dropped_steps" in line]


# ---- stop and skip ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_the_run_stops_and_names_the_layer(two: Path, runs: Path, stage: int) -> None:
    """One element of one rank's gradient: both ranks name step and tensor, and what is saved is of the step before."""
    sentence = said(two, f"stops-{stage}", "DivergedError")
    assert sentence.startswith("step 4: the gradient is not finite in layer conv3 (conv3.weight), the loss is 1.")
    assert "\n" not in sentence
    assert [path.name[-1] for path in sorted((runs / f"stops-{stage}" / "checkpoints").glob("step-*"))] == list("123")


def test_a_loss_that_is_not_finite_is_traced_to_the_last_layer(two: Path) -> None:
    sentence = said(two, "stops-nan", "DivergedError")
    assert sentence.startswith("step 4: the gradient is not finite in layer fc8 (fc8.weight, fc8.bias) and, ")
    assert "in 7 more, the loss is nan" in sentence


@pytest.mark.parametrize("stage", STAGES)
def test_a_skipped_step_changes_nothing(two: Path, runs: Path, stage: int) -> None:
    """Weights and momentum after step 4 are those after step 3, bit for bit; the samples of it count as seen."""
    run = runs / f"skips-{stage}"
    said(two, f"skips-{stage}")
    assert json.loads((two / f"skips-{stage}-0.json").read_text())["updates"] == 4
    assert same(step(run, 3), step(run, 4))
    assert not same(step(run, 4), step(run, 5))
    assert dropped(run) == [0, 0, 0, 1]  # of step 4 there is no loss that counts, so no line
    assert sightings(run, 1) == dict.fromkeys(range(5 * 24), 1)


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_without_a_norm_is_not_finite(two: Path, stage: int) -> None:
    """All of it is finite, as is the loss; its squares are not: DeepSpeed would leave the step out, but in stage 0."""
    said(two, f"steep-{stage}")
    told = json.loads((two / f"steep-{stage}-0.json").read_text())
    assert told["updates"] == 1


def test_so_many_may_be_skipped(two: Path) -> None:
    sentence = said(two, "in-a-row", "DivergedError")
    assert sentence.startswith("step 4: ")
    assert "divergence.max_skipped_in_a_row (1) is used up" in sentence
    assert "divergence.max_skipped_steps (1) is used up" in said(two, "in-all", "DivergedError")


def test_fp16_scales_first(two: Path, runs: Path) -> None:
    """A gradient that is not finite is the loss scale's business; a loss is not."""
    said(two, "half-scales")
    scaled = json.loads((two / "half-scales-0.json").read_text())["loss_scale"]
    assert (scaled["scale"], scaled["dropped_steps"]) == (32768, 1)
    said(two, "half")
    skipped = json.loads((two / "half-0.json").read_text())["loss_scale"]
    assert (skipped["scale"], skipped["dropped_steps"]) == (65536, 0)
    assert said(two, "half-least", "DivergedError").startswith("step 4: the gradient is not finite in layer conv3")
    assert dropped(runs / "half")[-1] == dropped(runs / "half-scales")[-1] == 1


# ---- back to a checkpoint --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_rolled_back_is_resumed_by_hand(two: Path, runs: Path, stage: int) -> None:
    """Bit for bit, as another start that takes up step 2 and is told to leave these positions out."""
    said(two, f"back-{stage}")
    said(two, f"by-hand-{stage}")
    run, hand = runs / f"back-{stage}", runs / f"hand-{stage}"
    assert same(step(run, 6), step(hand, 6))
    assert losses(run)[:6] == losses(hand)
    assert sightings(hand, 1) == dict.fromkeys(LEFT, 1)
    assert {at: key for at, key in keys_by_position(run).items() if at < 192} == keys_by_position(hand)


def test_what_is_written_of_a_rollback(two: Path, runs: Path) -> None:
    """The range is in the checkpoint; attempts.jsonl has an end and a start, outcome.json only the end."""
    run = runs / "back-0"
    newest = json.loads(next(step(run, 6).glob("*/COMMIT")).read_text())
    (skipped,) = newest["state"]["divergence"]["skipped"]
    assert (skipped["first"], skipped["end"]) == (48, 96)
    assert skipped["why"].startswith("step 4: the gradient is not finite in layer conv3")
    assert newest["state"]["samples"] == 6 * 24
    lines = read_lines(run / "attempts.jsonl")
    assert [(line["event"], line["step"]) for line in lines] == [("start", 0), ("end", 3), ("start", 2), ("end", 6)]
    assert lines[1]["cause"].startswith("rolled back: step 4: the gradient is not finite")
    assert json.loads((run / "outcome.json").read_text()) == {"generation": 2, "cause": "done", "code": 0}
    live = live_lines(run / "metrics.jsonl", starts(run / "attempts.jsonl"))
    trained = [line for line in live if "train/loss" in line]
    assert [(line["generation"], line["step"]) for line in trained] == [(1, 1), (1, 2), (2, 3), (2, 4), (2, 5), (2, 6)]
    assert [line["samples"] for line in trained] == [24 * number for number in range(1, 7)]


@pytest.mark.parametrize("name", [*map(str, STAGES), "norms"])
def test_without_a_checkpoint_it_begins_anew(two: Path, runs: Path, name: str) -> None:
    """Bit for bit as a fresh start that leaves these batches out; running statistics, too."""
    said(two, f"start-{name}")
    by_hand = "start-norms-by-hand" if name == "norms" else f"start-by-hand-{name}"
    assert same(runs / f"start-{name}", runs / by_hand)
    assert sightings(runs / f"start-{name}", 1) == dict.fromkeys(range(48, 96), 1)


def test_the_same_on_every_layout(others: Path, runs: Path) -> None:
    """Columns, replicas, one rank, four: the same samples, and the same run to rounding."""
    for name, columns in (("columns", 2), ("replicas", 1), ("back-alone", 1), ("grid", 2)):
        run = runs / name
        assert keys_by_position(run) == keys_by_position(runs / "back-0")
        assert sightings(run, columns) == dict.fromkeys(LEFT, 1)
        assert losses(run) == pytest.approx(losses(runs / "back-0"), rel=1e-4)
        assert difference(run, runs / "back-0") < 1e-4
    assert keys_by_position(runs / "back-3").keys() == {*range(48), *range(96, 240)}  # gone on on one rank


def test_killed_after_a_rollback(two: Path, runs: Path) -> None:
    """Before the next save it comes to the same step and goes back again; after that save it goes on."""
    said(two, "killed", "_Left")
    for name in ("killed-again", "short", "short-again"):
        said(two, name)
    for name in ("killed", "short"):
        assert same(runs / name, runs / "unbroken")
        assert keys_by_position(runs / name) == keys_by_position(runs / "unbroken")
        assert sightings(runs / name, 1) == dict.fromkeys([*range(72), *range(96, 192)], 1)
    taken = {
        name: [line["step"] for line in read_lines(runs / name / "attempts.jsonl") if line["event"] == "start"]
        for name in ("killed", "short")
    }
    assert taken == {"killed": [0, 3, 3, 3], "short": [0, 3, 6]}
    assert json.loads((two / "killed-0.json").read_text())["workers_left"] == 0


def test_only_to_what_it_stands_on(two: Path, runs: Path) -> None:
    """A start that took up step 2 by its path does not go back to the step 6 that the start before had come to."""
    said(two, "further-again")
    lines = read_lines(runs / "further" / "attempts.jsonl")
    assert [line["step"] for line in lines if line["event"] == "start"] == [0, 2, 2]
    assert sightings(runs / "further", 1) == dict.fromkeys(LEFT, 1)


def test_to_the_checkpoint_that_it_took_up_of_another_run(config: Path) -> None:
    """Which has gone on meanwhile, so that its newest one lies behind the step at fault."""
    run_cases(1, config, [Case("beside", ("run.steps=6",), "other_run_goes_on")])


def test_so_often_it_may_go_back(two: Path, runs: Path) -> None:
    """Twice from the same checkpoint, each time further; or no more than once; or until it is hopeless."""
    said(two, "twice")
    assert keys_by_position(runs / "twice").keys() == {*range(48), *range(144, 240)}
    assert "divergence.max_rollbacks (1) is used up" in said(two, "too-often", "DivergedError")
    assert "divergence.max_rollbacks (3) is used up" in said(two, "huge", "DivergedError")


# ---- a loss that jumps -----------------------------------------------------------------------------------------------


def test_a_spike(others: Path, runs: Path) -> None:
    """A loss four times as high in step 4: stopped, skipped, or rolled back, on one rank as on two."""
    sentence = said(others, "loud-stops", "DivergedError")
    assert sentence.startswith("step 4: the loss is 7.0")
    assert "more than 1.5 times 1.8297" in sentence
    assert dropped(runs / "loud-skips") == [0, 0, 0, 1, 1]
    for name in ("loud-back", "loud-alone"):
        assert sightings(runs / name, 1) == dict.fromkeys(LEFT, 1)
    assert difference(runs / "loud-alone", runs / "loud-back") < 1e-4
