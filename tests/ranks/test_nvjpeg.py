"""Runs that are to decode on GPUs, with another decoder in their place: the same on every layout, or not begun."""

import json
from pathlib import Path

import pytest
import torch

from tests.ranks.harness import Case, keys_by_position, losses, run_cases, tensors
from tests.ranks.pictures import TORN
from tests.ranks.test_shared_decoding import COLUMNS, SHARED

MODULE, ASKED = "tests.ranks.nvjpeg_cases", ("data.decoder=nvjpeg", "run.steps=8", "data.augment.crop=resized")


@pytest.fixture(scope="module")
def ran(config: Path, runs: Path) -> Path:
    on_two = {"gpu-data": (), "gpu-columns": (COLUMNS,), "gpu-shared": (COLUMNS, SHARED)}
    cases = [Case(name, (*ASKED, *overrides), "all_have") for name, overrides in on_two.items()]
    # In this order: one that begins without it, one that would go on without it, and one without it by its config.
    cases.append(Case("gpu-none", ASKED, "one_has_not"))
    cases.append(Case("gpu-lost", (*ASKED, "run.name=gpu-data", "run.steps=9"), "one_has_not"))
    cases.append(Case("cpu", (*ASKED, "data.decoder=auto")))
    run_cases(2, config, cases, module=MODULE)
    run_cases(1, config, [Case("gpu-alone", ASKED, "all_have")], module=MODULE)
    return runs


def ledger(run: Path) -> list[tuple[int, str, str]]:
    lines = (json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines())
    return [(line["position"], line["key"], line["cause"]) for line in lines]


def pixels(run: Path, ranks: int) -> dict[str, int]:
    """The sum of each picture's pixels, by position; ranks that saw the same picture saw the same pixels."""
    found = dict[str, int]()
    for rank in range(ranks):
        for position, value in json.loads(run.with_name(f"{run.name}-{rank}.json").read_text()).items():
            assert found.setdefault(position, value) == value
    return found


def test_the_same_run_on_every_layout(ran: Path) -> None:
    """Each picture bit for bit; the run bit for bit where only the decoding is shared out, else to rounding."""
    alone = pixels(ran / "gpu-alone", 1)
    assert len(set(alone.values())) > 100
    for name in ("gpu-data", "gpu-columns", "gpu-shared"):
        assert pixels(ran / name, 2) == alone
        assert losses(ran / name) == pytest.approx(losses(ran / "gpu-alone"), rel=1e-4)
        assert keys_by_position(ran / name) == keys_by_position(ran / "gpu-alone")
    assert losses(ran / "gpu-shared") == losses(ran / "gpu-columns")
    ours, theirs = tensors(ran / "gpu-shared"), tensors(ran / "gpu-columns")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_ledger_is_the_cpus(ran: Path) -> None:
    """The torn picture is known only once it has been decoded; training and evaluation write it down all the same."""
    expected = ledger(ran / "cpu")
    assert {key for _, key, _ in expected} == {f"train-{TORN:04d}"}
    for name in ("gpu-data", "gpu-columns", "gpu-shared", "gpu-alone"):
        assert ledger(ran / name) == expected


def test_its_pixels_are_felt_and_named(ran: Path) -> None:
    assert losses(ran / "gpu-alone") != pytest.approx(losses(ran / "cpu"), rel=1e-4)
    ours, theirs = (json.loads((ran / name / "identity.json").read_text()) for name in ("gpu-data", "cpu"))
    assert ours.pop("decoder") == f"nvjpeg+{theirs.pop('decoder')}"
    assert ours == theirs


def test_where_one_rank_has_it_not_no_rank_uses_it(ran: Path) -> None:
    """A run that begins so is the CPU's; one that was begun with it is refused, on every rank, and loses nothing."""
    assert losses(ran / "gpu-none") == losses(ran / "cpu")
    assert "decoder: auto" in (ran / "gpu-none" / "config.yaml").read_text()
    for rank in (0, 1):
        assert (ran / f"gpu-none-{rank}.txt").read_text() == "nothing"
        refused = (ran / f"gpu-lost-{rank}.txt").read_text()
        assert 'is of a run with decoder = "nvjpeg+pillow/' in refused
        assert "\n" not in refused
    assert len(losses(ran / "gpu-data")) == 8
