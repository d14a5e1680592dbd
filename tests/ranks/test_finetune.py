"""A run that begins with another's weights is the same run on every layout, and goes on when that other is gone."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dist_alexnet.__main__ import run
from dist_alexnet.track.jsonl import starts
from tests.ranks.harness import Case, difference, keys_by_position, losses, run_cases, tensors
from tests.ranks.test_same_run import COLUMNS, REPLICAS, zero

MODULE = "tests.ranks.finetune_cases"
MORE_CLASSES = "network.num_classes=7"
BATCH_NORM = "network.name=alexnet-bn"
NO_VAL = "data.val=null"
SAVING = "checkpoint.every_steps=2"
ALL_BUT_CONV1 = "finetune.new_layers=[conv2,conv3,conv4,conv5,fc6,fc7,fc8]"
LAYOUTS: dict[int, dict[str, tuple[str, ...]]] = {
    1: {"one-zero-3": (zero(3),)},
    2: {
        "columns": (COLUMNS,),
        "data-zero-2": (zero(2),),
        "replicas-zero-3": (REPLICAS, zero(3)),
    },
}
OTHERS = [name for layouts in LAYOUTS.values() for name in layouts]
NORMED = ("columns", "data-zero-2", "replicas-zero-3")


def begins(source: Path, *more: str) -> tuple[str, ...]:
    return (f"finetune.from={source}", "finetune.new_layers=[fc8]", NO_VAL, *more)


@pytest.fixture(scope="module")
def ran(config: Path, runs: Path) -> Path:
    """The sources, and a run from each on every layout; the last one of two ranks is killed in its save of step 4."""
    tuned, normed = begins(runs / "source"), begins(runs / "source-bn", BATCH_NORM)
    nothing, some = "run.steps=0", "run.steps=6"
    alone = [
        Case("source", (MORE_CLASSES, "run.steps=6", NO_VAL)),
        Case("source-bn", (MORE_CLASSES, BATCH_NORM, "run.steps=2", NO_VAL)),
        Case("fresh", (nothing, NO_VAL)),
        Case("fresh-bn", (nothing, BATCH_NORM, NO_VAL)),
        Case("begin-one", (*tuned, nothing)),
        Case("tune-one", (*tuned, some)),
    ]
    for world, cases in ((1, alone), (2, [])):
        for name, layout in LAYOUTS[world].items():
            cases.append(Case(f"begin-{name}", (*tuned, nothing, *layout)))
            cases.append(Case(f"tune-{name}", (*tuned, some, *layout)))
            if name in NORMED:
                cases.append(Case(f"begin-bn-{name}", (*normed, nothing, *layout)))
        if world == 2:
            back = (f"finetune.from={runs / 'source'}", ALL_BUT_CONV1, zero(2))
            cases.append(Case("back", back, "back_to_the_start"))
            cases.append(Case("lost", (*tuned, "run.steps=4", SAVING, COLUMNS)))
            where = {"where": "data", "step": 4, "rank": 1}
            cases.append(Case("killed", (*tuned, some, SAVING, COLUMNS), "killed_in_save", where))
            with pytest.raises(AssertionError):
                run_cases(world, config, cases, module=MODULE)
        else:
            run_cases(world, config, cases, module=MODULE)
    return runs


@pytest.fixture(scope="module")
def gone_on(config: Path, ran: Path) -> Path:
    """The source has trained on; of two runs one goes on and one, without a checkpoint of its own, begins again."""
    over = (*begins(ran / "source"), SAVING, COLUMNS)
    shutil.rmtree(ran / "lost" / "checkpoints")
    cases = [
        Case("longer", ("run.name=source", MORE_CLASSES, "run.steps=7", NO_VAL)),
        Case("lost", (*over, "run.steps=6")),
        Case("moved", (), "moved", {"run": "source"}),
        Case("killed", (*over, "run.steps=6")),
    ]
    run_cases(2, config, cases, module=MODULE)
    return ran


def same(here: dict[str, torch.Tensor], there: dict[str, torch.Tensor], layers: tuple[str, ...]) -> bool:
    """Whether weights and statistics of some layers are the same bits."""
    keys = [key for key in here if key.split(".")[0] in layers and not key.endswith("/momentum")]
    assert len(keys) >= 2 * len(layers)
    return all(torch.equal(here[key], there[key]) for key in keys)


OLD = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")


@pytest.mark.parametrize("name", ["one", *OTHERS])
def test_it_begins_with_the_same_bits(ran: Path, name: str) -> None:
    here, source, fresh = (tensors(ran / one) for one in (f"begin-{name}", "source", "fresh"))
    assert same(here, source, OLD)
    assert same(here, fresh, ("fc8",))
    assert not same(fresh, source, OLD), "else nothing would have been taken"
    assert all(not values.any() for key, values in here.items() if key.endswith("/momentum"))


@pytest.mark.parametrize("name", NORMED)
def test_running_statistics_are_taken(ran: Path, name: str) -> None:
    here, source, fresh = (tensors(ran / one) for one in (f"begin-bn-{name}", "source-bn", "fresh-bn"))
    normed = tuple(sorted({key.split(".")[0] for key in here} - {"fc8"}))
    assert any(key.endswith("variance/statistic") for key in here)
    assert same(here, source, normed)
    assert same(here, fresh, ("fc8",))


@pytest.mark.parametrize("name", OTHERS)
def test_it_is_the_same_run(ran: Path, name: str) -> None:
    here, reference = ran / f"tune-{name}", ran / "tune-one"
    assert keys_by_position(here) == keys_by_position(reference)
    assert losses(here) == pytest.approx(losses(reference), rel=1e-4)
    assert difference(here, reference) < 1e-4


def test_back_to_the_start_is_where_it_began(ran: Path) -> None:
    """Also where a rank holds nothing of what is taken (conv1, under ZeRO 2)."""
    back, source, fresh = (tensors(ran / one) for one in ("back", "source", "fresh"))
    assert same(back, source, ("conv1",))
    assert same(back, fresh, (*OLD[1:], "fc8"))
    assert all(not values.any() for key, values in back.items() if key.endswith("/momentum"))


def test_killed_and_gone_on_without_the_source(gone_on: Path) -> None:
    """Bit for bit the unbroken run; its folder and its checkpoints say what it began with."""
    here, there = tensors(gone_on / "killed"), tensors(gone_on / "tune-columns")
    assert all(torch.equal(here[key], there[key]) for key in there)
    assert losses(gone_on / "killed") == losses(gone_on / "tune-columns")
    assert [start.step for start in starts(gone_on / "killed" / "attempts.jsonl").values()] == [0, 2]
    record = json.loads((gone_on / "killed" / "finetune.json").read_text())
    assert record["checkpoint"] == str(gone_on / "source" / "checkpoints" / "step-00000006" / "g0001")
    commit = next((gone_on / "killed" / "checkpoints").glob("step-00000006/*/COMMIT"))
    assert json.loads(commit.read_text())["state"]["finetune"] == record


def test_begun_again_with_what_it_began_with(gone_on: Path) -> None:
    """Its own checkpoints were lost, and the source's newest is another by now: it takes the one that it took."""
    here, there = tensors(gone_on / "lost"), tensors(gone_on / "tune-columns")
    assert all(torch.equal(here[key], there[key]) for key in there)
    assert [start.step for start in starts(gone_on / "lost" / "attempts.jsonl").values()] == [0, 0]


def refused(capsys: pytest.CaptureFixture[str], config: Path, *overrides: str) -> str:
    """The one line that `train` gives."""
    capsys.readouterr()
    assert run(["train", str(config), *overrides]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_another_source_is_another_run(config: Path, gone_on: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = gone_on / "moved" / "checkpoints"
    killed = ("run.name=killed", "run.steps=7")
    assert "finetune.digest" in refused(capsys, config, *killed, *begins(moved / "step-00000007"))
    assert "finetune.digest" in refused(capsys, config, *killed)
    assert "finetune.new_layers" in refused(capsys, config, *killed, f"finetune.from={gone_on / 'source'}")
    said = refused(capsys, config, *killed, *begins(gone_on / "nowhere"))
    assert "nowhere holds no committed checkpoint" in said
    assert f"this run began with {gone_on / 'source'}, so set finetune.from back" in said
