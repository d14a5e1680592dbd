"""Evaluation on real ranks: each image once on any world, the same figures, or no figure."""

import json
from pathlib import Path

import numpy as np
import pytest

from dist_alexnet.errors import EvaluationError
from dist_alexnet.evaluate import evaluate_checkpoint
from shards.index import read_index
from tests.ranks.harness import Case, run_cases


@pytest.fixture(scope="module")
def trained(config: Path, runs: Path) -> Path:
    run_cases(2, config, [Case("to-evaluate", ("parallel.columns=2", "run.steps=12"))])
    return runs / "to-evaluate"


def test_the_same_figures_on_any_world(config: Path, runs: Path, trained: Path) -> None:
    """37 images on 1, 2, 3 and 4 ranks, in batches that none of them divides."""
    for world in (1, 2, 3, 4):
        run_cases(world, config, [Case(f"figures-{world}", (), "evaluated", {"checkpoint": str(trained)})])
    figures = [json.loads((runs / f"figures-{world}.json").read_text()) for world in (1, 2, 3, 4)]
    for here in figures:
        assert here["images"] == 37
        assert here["keys_digest"] == figures[0]["keys_digest"]
        assert (here["top1"], here["top5"]) == (figures[0]["top1"], figures[0]["top5"])
        assert here["loss"] == pytest.approx(figures[0]["loss"], rel=1e-6)


def test_a_wrong_count_gives_no_figure(config: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image counted twice in place of another: the digest notices what the count cannot."""
    val = str(config.parent / "shards" / "val.index.json")
    from dist_alexnet.data import loader

    right = loader.evaluation_positions

    def doubled(step: int, batch_size: int, total: int) -> np.ndarray:
        ids = right(step, batch_size, total)
        return np.where(ids == 5, 6, ids)

    assert evaluate_checkpoint(trained, val).images == len(read_index(val))
    monkeypatch.setattr(loader, "evaluation_positions", doubled)
    with pytest.raises(EvaluationError, match=r"37 images .* expected 37"):
        evaluate_checkpoint(trained, val)
