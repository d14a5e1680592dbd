"""Columns of one replica that share the decoding of their pictures: the same run, bit for bit, on real ranks."""

from pathlib import Path

import pytest
import torch

from dist_alexnet.track.jsonl import read_lines
from tests.ranks.harness import Case, difference, keys_by_position, losses, run_cases, sightings, tensors
from tests.ranks.pictures import TORN

COLUMNS, SHARED = "parallel.columns=2", "data.share_decoding=true"
# All that a batch carries: noise that ends in the middle, crops of any shape, and a mean other than the default.
VIEWS = ("data.augment.colour.deviation=0.1", "data.augment.colour.until_epoch=1.5", "data.mean=colour")
STEPS = "run.steps=12"  # 2.2 epochs: the torn picture comes by twice at least
CASES = {
    "plain": (),
    "views": (*VIEWS, "data.augment.crop=resized"),
    "micro": ("parallel.micro_batch=6", "data.workers=1", *VIEWS),
}


@pytest.fixture(scope="module")
def ran(config: Path, runs: Path) -> Path:
    """Each case with and without, in one start of two ranks."""
    cases = []
    for name, overrides in CASES.items():
        cases.append(Case(f"apart-{name}", (COLUMNS, STEPS, *overrides)))
        cases.append(Case(f"shared-{name}", (COLUMNS, STEPS, SHARED, *overrides)))
    run_cases(2, config, cases)
    return runs


@pytest.mark.parametrize("name", CASES)
def test_the_same_run_bit_for_bit(ran: Path, name: str) -> None:
    shared, apart = ran / f"shared-{name}", ran / f"apart-{name}"
    assert len(losses(apart)) == 12
    assert losses(shared) == losses(apart)
    ours, theirs = tensors(shared), tensors(apart)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", CASES)
def test_each_picture_is_decoded_by_one_column(ran: Path, name: str) -> None:
    shared, apart = ran / f"shared-{name}", ran / f"apart-{name}"
    assert keys_by_position(shared) == keys_by_position(apart)
    assert sightings(apart, columns=2) == dict.fromkeys(range(12 * 24), 1)
    assert sightings(shared, columns=1) == dict.fromkeys(range(12 * 24), 1)
    counts = [
        sum(len(line["keys"]) for line in read_lines(shared / "keys" / f"rank-0000{rank}.jsonl")) for rank in (0, 1)
    ]
    assert counts == [12 * 12, 12 * 12]


@pytest.mark.parametrize("name", CASES)
def test_the_same_faults_and_figures(ran: Path, name: str) -> None:
    """Faults of every column reach the ledger, once each. Evaluation: each of 37 pictures once, padded for columns."""
    ledgers = [
        [{key: line[key] for key in ("step", "position", "key", "cause")} for line in read_lines(run / "ledger.jsonl")]
        for run in (ran / f"shared-{name}", ran / f"apart-{name}")
    ]
    assert ledgers[0] == ledgers[1]
    assert {line["key"] for line in ledgers[0]} == {f"train-{TORN:04d}"}
    assert len(ledgers[0]) >= 2
    ours, theirs = (
        [line for line in read_lines(ran / f"{kind}-{name}" / "metrics.jsonl") if "val/loss" in line]
        for kind in ("shared", "apart")
    )
    assert len(ours) == len(theirs) == 1
    assert ours[0]["val/loss"] == pytest.approx(theirs[0]["val/loss"], rel=1e-6)
    assert ours[0]["val/top1"] == theirs[0]["val/top1"]


def test_what_the_views_do_is_felt(ran: Path) -> None:
    """Else the equalities above could not fail."""
    assert len({tuple(losses(ran / f"shared-{name}")) for name in CASES}) == 3


def test_the_same_run_on_one_rank(config: Path, ran: Path) -> None:
    """Noise, crops and mean are functions of the position: on a rank of its own they are the same."""
    run_cases(1, config, [Case("alone-views", (STEPS, SHARED, *CASES["views"]))])
    assert losses(ran / "alone-views") == pytest.approx(losses(ran / "shared-views"), rel=1e-4)
    assert difference(ran / "alone-views", ran / "shared-views") < 1e-4


def test_a_run_goes_on_without_sharing(config: Path, ran: Path) -> None:
    """It is no part of what makes a run: stopped with it, taken up without it."""
    stopped = ("run.name=stopped-shared", COLUMNS)
    run_cases(2, config, [Case("stopped-shared", (*stopped, SHARED, "run.steps=8"))])
    run_cases(2, config, [Case("stopped-shared-on", (*stopped, STEPS))])
    assert losses(ran / "stopped-shared") == losses(ran / "apart-plain")
