"""Evaluation on real ranks: each image once on any world, the same figures, or no figure."""

import json
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dist_alexnet import evaluate, train
from dist_alexnet.config import load_config
from dist_alexnet.data.batch import Batch
from dist_alexnet.data.statistics import IMAGENET
from dist_alexnet.errors import EvaluationError
from dist_alexnet.evaluate import Evaluation
from dist_alexnet.judging.judge import judge
from dist_alexnet.judging.probabilities import read_answers
from dist_alexnet.parallel.layout import Layout
from dist_alexnet.parallel.mesh import Mesh, make_mesh
from dist_alexnet.track.jsonl import read_lines
from shards.build import build_shards
from shards.errors import InputError
from shards.index import read_index
from shards.reader import ShardReader
from tests.judging.networks import Made, answers_in_float64, make
from tests.ranks.harness import Case, keys_by_position, losses, run_cases
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
    ten = ("evaluate.views=10", *twelve)
    cases = [
        Case("to-evaluate", ("parallel.columns=2", *twelve)),
        Case("on-data", twelve),
        Case("ten-columns", ("parallel.columns=2", *ten)),
        Case("ten-replicas", ("parallel.replicas=2", "parallel.zero_stage=1", *ten)),
        Case("ten-data", ("parallel.zero_stage=3", *ten)),
    ]
    run_cases(2, config, cases)
    return runs / "to-evaluate"


@pytest.fixture(scope="module")
def networks(alone: Mesh, runs: Path) -> list[Made]:
    folder = runs.parent / "networks"
    return [make(folder / "a", 1, classes=Noise().classes), make(folder / "b", 2, "alexnet-2012-paper", image_size=67)]


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


@pytest.mark.parametrize("layout", ["columns", "replicas", "data"])
def test_ten_views_in_training_are_those_of_the_command(trained: Path, runs: Path, torn: Path, layout: str) -> None:
    """Where classes are cut over ranks, too; and they are not the centre's."""
    last = [line for line in read_lines(runs / f"ten-{layout}" / "metrics.jsonl") if "val/loss" in line][-1]
    figures = judge([str(runs / f"ten-{layout}")], str(torn), views=10).figures
    assert (last["val/top1"], last["val/top5"]) == (figures.top1, figures.top5)
    assert last["val/loss"] == pytest.approx(figures.loss, rel=1e-6)
    assert last["val/loss"] != pytest.approx(judge([str(trained)], str(torn)).figures.loss, rel=1e-5)


def test_a_node_that_cannot_make_its_cache_is_every_ranks_mistake(config: Path, tmp_path: Path) -> None:
    with RankPool(2, tmp_path) as ranks:
        said = ranks.ask(evaluated_where_rank_1_cannot, str(config))
        (tmp_path / "said.npz").write_bytes(b"PK")
        of_file = ranks.ask(judged_from_a_broken_file, str(config), str(tmp_path / "said.npz"))
    assert said == ["the cache cannot be made on host b"] * 2
    assert of_file[0] == of_file[1]  # only rank 0 reads it
    assert of_file[0].startswith(f"{tmp_path}/said.npz cannot be read")


def test_the_same_figures_on_any_world(
    config: Path, runs: Path, trained: Path, torn: Path, networks: list[Made]
) -> None:
    """37 images on 1, 2, 3 and 4 ranks, in batches that none of them divides; and a set with a torn picture, by one
    network, and by the ten views of two, which are averaged.
    """
    torn_val, of = f"data.val={torn}", {"checkpoints": [str(trained)]}
    for world in (1, 2, 3, 4):
        asked = {"views": 10, "weights": (1, 2), "probabilities": str(runs / f"averaged-{world}.npz")}
        averaged = {"checkpoints": [made.folder for made in networks], "asked": asked}
        cases = [
            Case(f"figures-{world}", (), "evaluated", of),
            Case(f"torn-{world}", (torn_val,), "evaluated", of),
            Case(f"averaged-{world}", (torn_val,), "evaluated", averaged),
        ]
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
    of_any_world(runs, networks, str(torn))


def of_any_world(runs: Path, networks: list[Made], torn: str) -> None:
    """The averages: rows in the order of the index, counts alike, and the mean of what plain float64 says."""
    parts = [answers_in_float64(made, torn, 10) for made in networks]
    expected_NC, index = parts[0] / 3 + parts[1] * 2 / 3, read_index(torn)
    reader = ShardReader(index)
    first = json.loads((runs / "averaged-1.json").read_text())
    hits = np.argsort(-expected_NC, axis=1, kind="stable") == index.samples["label"][:, None]
    hits[position_in(torn)] = False
    assert (first["top1_correct"], first["top5_correct"]) == (hits[:, 0].sum(), hits[:, :5].sum())
    assert 0 < first["top1_correct"] < 36
    for world in (1, 2, 3, 4):
        here = json.loads((runs / f"averaged-{world}.json").read_text())
        assert {**here, "loss": 0, "inputs": 0} == {**first, "loss": 0, "inputs": 0}
        assert here["loss"] == pytest.approx(first["loss"], rel=1e-6)
        said = read_answers(str(runs / f"averaged-{world}.npz"))
        assert list(said.keys) == [reader.key(row) for row in range(len(index))]
        np.testing.assert_allclose(said.probability_NC, expected_NC, rtol=1e-4, atol=1e-6)


def test_there_are_never_two_sets_of_loader_processes(
    config: Path, runs: Path, alone: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training's are away while it is evaluated, and the samples that follow are those that would have followed."""
    monkeypatch.setenv("LOCAL_RANK", "0")  # DeepSpeed asks for it where the process group is there already
    alive = []

    def watched(*given: Any, after_each: Callable[[Batch], None], **named: Any) -> Evaluation:
        def look(batch: Batch) -> None:
            alive.append(len(active_children()))
            after_each(batch)

        return evaluate.evaluate(*given, after_each=look, **named)

    own = ["run.steps=5", "run.deterministic=false", "data.workers=2", "parallel.micro_batch=12"]
    with patch.object(train, "evaluate", watched):
        train.train(load_config(config, [*own, "run.name=rests", "evaluate.every_steps=2"]))
    assert alive == [2] * 12  # 4 batches after the steps 2, 4 and 5
    train.train(load_config(config, [*own, "run.name=goes-on"]))
    assert active_children() == []
    assert keys_by_position(runs / "rests") == keys_by_position(runs / "goes-on")
    assert losses(runs / "rests") == pytest.approx(losses(runs / "goes-on"), rel=1e-6)


def test_a_wrong_count_gives_no_figure(config: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image counted twice in place of another: the digest notices what the count cannot."""
    val = str(config.parent / "shards" / "val.index.json")
    from dist_alexnet.data import loader

    right = loader.evaluation_positions

    def doubled(step: int, batch_size: int, total: int) -> np.ndarray:
        ids = right(step, batch_size, total)
        return np.where(ids == 5, 6, ids)

    assert judge([str(trained)], val).figures.images == len(read_index(val))
    monkeypatch.setattr(loader, "evaluation_positions", doubled)
    with pytest.raises(EvaluationError, match=r"37 images .* expected 37"):
        judge([str(trained)], val)


def position_of(trained: Path) -> int:
    """The number that the torn picture has in its index."""
    return position_in(str(trained.parents[1] / "torn" / "val.index.json"))


def position_in(torn: str) -> int:
    index = read_index(torn)
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


def judged_from_a_broken_file(config: str, file: str) -> str:
    with pytest.raises(InputError) as caught:
        judge([file], load_config(Path(config)).data.val or "")
    return str(caught.value)


def nothing(*_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    raise AssertionError("there is no batch")
