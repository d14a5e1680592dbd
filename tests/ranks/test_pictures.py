"""Pictures that a run draws while it trains: the same on every layout, and never in its way."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dist_alexnet.track.jsonl import read_lines
from tests.ranks.harness import ROOT, Case, environment, run_cases

LAYOUTS = {
    "data": (2, ("parallel.columns=1",)),
    "columns": (2, ("parallel.columns=2",)),
    "zero-3": (2, ("parallel.columns=1", "parallel.zero_stage=3", "parallel.micro_batch=4")),
    "replicas": (2, ("parallel.replicas=2", "parallel.zero_stage=2")),
    "all": (4, ("parallel.columns=2", "parallel.replicas=2", "parallel.zero_stage=1", "data.share_decoding=true")),
}
ON = ("log.pictures=true", "parallel.micro_batch=null")


@pytest.fixture(scope="module")
def drawn(config: Path, runs: Path) -> Path:
    """A run of no steps, whose weights are those that were drawn, and one of two steps, on each layout."""
    for world in (2, 4):
        cases = [
            Case(f"pictures-{name}-{steps}", (*ON, f"run.steps={steps}", *overrides))
            for name, (ranks, overrides) in LAYOUTS.items()
            for steps in (0, 2)
            if ranks == world
        ]
        run_cases(world, config, cases)
    return runs


def pictures(runs: Path, layout: str, steps: int) -> dict[str, bytes]:
    folder = runs / f"pictures-{layout}-{steps}" / "pictures"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pixels(runs: Path, layout: str, steps: int, name: str) -> NDArray[np.int64]:
    path = runs / f"pictures-{layout}-{steps}" / "pictures" / f"step-{steps:08d}-{name}.png"
    return np.asarray(Image.open(path).convert("RGB")).astype(np.int64)


def test_each_evaluation_leaves_three_pictures(drawn: Path) -> None:
    for layout in LAYOUTS:
        for steps in (0, 2):
            names = {f"step-{steps:08d}-{name}.png" for name in ("filters", "batch", "predictions")}
            assert set(pictures(drawn, layout, steps)) == names


def test_filters_and_batch_are_the_same_bytes_on_every_layout(drawn: Path) -> None:
    """The batch also where rounding has moved the weights; it is another batch than that of the first step."""
    name = "step-{:08d}-{}.png".format
    for layout in LAYOUTS:
        start, later = pictures(drawn, layout, 0), pictures(drawn, layout, 2)
        assert start[name(0, "filters")] == pictures(drawn, "data", 0)[name(0, "filters")], layout
        assert start[name(0, "batch")] == pictures(drawn, "data", 0)[name(0, "batch")], layout
        assert later[name(2, "batch")] == pictures(drawn, "data", 2)[name(2, "batch")], layout
    assert (pixels(drawn, "data", 0, "batch")[30:] != pixels(drawn, "data", 2, "batch")[30:]).any()


def test_predictions_are_the_same_to_rounding(drawn: Path) -> None:
    for layout in LAYOUTS:
        for steps in (0, 2):
            difference = pixels(drawn, layout, steps, "predictions") - pixels(drawn, "data", steps, "predictions")
            assert np.abs(difference).mean() < 0.05, layout
        assert np.abs(pixels(drawn, layout, 2, "filters") - pixels(drawn, "data", 2, "filters")).max() <= 2, layout
    assert (pixels(drawn, "data", 0, "predictions") != pixels(drawn, "data", 2, "predictions")).mean() > 1e-3


def test_what_cannot_be_drawn_is_said_and_stops_nothing(config: Path, runs: Path) -> None:
    """There is a file where the folder of pictures would be; and no validation set, so nothing to predict."""
    name = "pictures-in-the-way"
    (runs / name).mkdir(parents=True)
    (runs / name / "pictures").write_text("in the way")
    overrides = (f"run.name={name}", *ON, "run.steps=2", "data.val=null", "evaluate.every_steps=1")
    command = [sys.executable, "-m", "dist_alexnet", "train", str(config), *overrides]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "no picture" in line]
    assert [line.partition(":")[0] for line in said] == [
        f"no picture of the {what} at step {step}" for step in (1, 2) for what in ("filters", "batch")
    ]
    assert [line["step"] for line in read_lines(runs / name / "metrics.jsonl")] == [1, 2]
    assert (runs / name / "pictures").read_text() == "in the way"
