"""Evaluation on real ranks: each image once on any world, the same figures, or no figure."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dist_alexnet import evaluate
from dist_alexnet.config import load_config
from dist_alexnet.data.batch import Batch
from dist_alexnet.data.statistics import IMAGENET
from dist_alexnet.errors import EvaluationError
from dist_alexnet.evaluate import evaluate_checkpoint
from dist_alexnet.parallel.layout import Layout
from dist_alexnet.parallel.mesh import make_mesh
from dist_alexnet.track.jsonl import read_lines
from shards.build import build_shards
from shards.errors import InputError
from shards.index import read_index
from shards.reader import ShardReader
from tests.ranks.harness import Case, run_cases
from tests.ranks.pictures import Noise
from tests.ranks.pool import RankPool

TORN = 11  # of the validation set that has a torn picture


@pytest.fixture(scope="module")
def torn(runs: Path) -> Path:
    build_shards(Noise(TORN), "val", str(runs.parent / "torn"), samples_per_shard=10)
    return runs.parent / "torn" / "val.index.json"


@pytest.fixture(scope="module")
def trained(config: Path, runs: Path, torn: Path) -> Path:
    twelve = (f"data.val={torn}", "run.steps=12", "evaluate.every_steps=6")
    run_cases(2, config, [Case("to-evaluate", ("parallel.columns=2", *twelve)), Case("on-data", twelve)])
    return runs / "to-evaluate"


def test_what_fails_in_an_evaluation_stands_in_the_ledger_once(trained: Path, runs: Path) -> None:
    ledgers = [
        [line for line in read_lines(folder / "ledger.jsonl") if line.get("split") == "val"]
        for folder in (trained, runs / "on-data")
    ]
    assert ledgers[0] == ledgers[1]
    assert [(line["step"], line["position"], line["key"]) for line in ledgers[0]] == [
        (step, position_of(trained), f"val-{TORN:04d}") for step in (6, 12)
    ]
    assert all("truncated" in line["cause"] for line in ledgers[0])


def test_a_node_that_cannot_make_its_cache_is_every_ranks_mistake(config: Path, tmp_path: Path) -> None:
    with RankPool(2, tmp_path) as ranks:
        said = ranks.ask(evaluated_where_rank_1_cannot, str(config))
    assert said == ["the cache cannot be made on host b"] * 2


def test_the_same_figures_on_any_world(config: Path, runs: Path, trained: Path, torn: Path) -> None:
    """37 images on 1, 2, 3 and 4 ranks, in batches that none of them divides; and a set with a torn picture."""
    torn_val, of = f"data.val={torn}", {"checkpoint": str(trained)}
    for world in (1, 2, 3, 4):
        cases = [Case(f"figures-{world}", (), "evaluated", of), Case(f"torn-{world}", (torn_val,), "evaluated", of)]
        run_cases(world, config, cases)
    for world in (1, 2, 3, 4):
        figures = json.loads((runs / f"torn-{world}.json").read_text())
        assert (figures["images"], figures["bad_images"]) == (37, 1)
        (fault,) = figures["faults"]
        assert fault["key"] == f"val-{TORN:04d}"
        assert figures["faults"] == json.loads((runs / "torn-1.json").read_text())["faults"]
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


def position_of(trained: Path) -> int:
    """The number that the torn picture has in its index."""
    index = read_index(str(trained.parents[1] / "torn" / "val.index.json"))
    reader = ShardReader(index)
    return next(number for number in range(len(index)) if reader.key(number) == f"val-{TORN:04d}")


def evaluated_where_rank_1_cannot(config: str) -> str:
    settings = load_config(Path(config))
    index, mesh = read_index(settings.data.val or ""), make_mesh(Layout(2), "cpu")

    def batches(*_: Any, **__: Any) -> list[Batch]:
        if dist.get_rank() == 1:
            raise InputError("the cache cannot be made on host b")
        return []

    with patch.object(evaluate, "evaluation_batches", batches), pytest.raises(InputError) as caught:
        evaluate.evaluate(nothing, index, settings, IMAGENET, mesh, torch.device("cpu"))
    return str(caught.value)


def nothing(*_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    raise AssertionError("there is no batch")
