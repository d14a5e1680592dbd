"""Batches over a server that fails are those of a local disk; a fault that lasts stops the run, which then goes on."""

import itertools
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from dist_alexnet.config import Batches, Config
from dist_alexnet.data import cold_start
from dist_alexnet.data.batch import Batch
from dist_alexnet.data.loader import Share, evaluation_batches, training_batches
from dist_alexnet.data.statistics import IMAGENET
from shards.errors import InputError, StorageFault
from shards.index import ShardIndex, read_index
from tests.servers.conftest import SHARDS

if TYPE_CHECKING:
    from tests.servers.faulty import FaultyServer

BATCH, STEPS = 8, range(1, 9)  # two epochs of 30


def config(workers: int, cache: Path | None, max_bytes: int | None = None) -> Config:
    data = {"batch_size": BATCH, "resize": 12, "image_size": 8, "window_shards": 1, "workers": workers}
    return Config.model_validate(
        {
            "data": {**data, "cache": {"dir": None if cache is None else str(cache), "max_bytes": max_bytes}},
            "evaluate": {"batch_size": 7},
        }
    )


def training(index: ShardIndex, settings: Config, share: Share, steps: range = STEPS) -> list[Batch]:
    batches = Batches(data_ranks=share.data_ranks, micro_batch=BATCH // share.data_ranks, accumulation=1)
    return list(training_batches(index, settings, batches, share, steps, IMAGENET, pin_memory=False))


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert [batch.keys for batch in ours] == [batch.keys for batch in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.pixels_b3SS, other.pixels_b3SS)
        assert torch.equal(one.label_b, other.label_b)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "cached"), [(0, False), (0, True), (2, True)])
def test_batches_are_those_of_a_local_disk(
    server: "FaultyServer", index: ShardIndex, folder: Path, tmp_path: Path, workers: int, cached: bool
) -> None:
    local = read_index(f"{folder}/train.index.json")
    settings = config(workers, tmp_path / "cache" if cached else None)
    if workers == 0:  # in other processes, the limits are those of real runs: faults would take their time
        for shard in range(SHARDS):
            server.fail(f"train-{shard}.tar", ["wrong", None, "cut", "status-503", None, "reset"])
    for rank in range(2):
        share = Share(rank, 2)
        assert_same(training(index, settings, share), training(local, config(0, None), share))
    ours = list(evaluation_batches(index, settings, Share(), pin_memory=False))
    assert_same(ours, list(evaluation_batches(local, config(0, None), Share(), pin_memory=False)))
    if workers:
        assert server.sent("train-") == sum(row.bytes for row in index.shards)  # two ranks, their workers, evaluation


def test_a_rank_fetches_its_lanes_and_no_more(server: "FaultyServer", index: ShardIndex, tmp_path: Path) -> None:
    training(index, config(0, tmp_path / "cache"), Share(1, 4), range(0, 3))
    time.sleep(0.3)
    assert len(list((tmp_path / "cache").glob("*.tar"))) <= SHARDS // 4 + 3


@pytest.mark.parametrize("cached", [False, True])
def test_a_lasting_fault_stops_and_the_run_goes_on_where_it_was(
    server: "FaultyServer", index: ShardIndex, folder: Path, tmp_path: Path, cached: bool
) -> None:
    settings = config(0, tmp_path / "cache" if cached else None)
    whole = training(read_index(f"{folder}/train.index.json"), config(0, None), Share())
    server.fail("train-4.tar", itertools.repeat("status-500"))
    batches = Batches(data_ranks=1, micro_batch=BATCH, accumulation=1)
    done: list[Batch] = []

    def train() -> None:
        for batch in training_batches(index, settings, batches, Share(), STEPS, IMAGENET, pin_memory=False):
            done.append(batch)

    with pytest.raises(StorageFault, match=r"train-4\.tar .*status 500"):
        train()
    server.fail("train-4.tar", [])
    assert_same([*done, *training(index, settings, Share(), STEPS[len(done) :])], whole)


def test_the_wait_for_the_first_batch_is_told_of(
    server: "FaultyServer", index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold_start, "EVERY_S", 0.05)
    for shard in range(SHARDS):
        server.fail(f"train-{shard}.tar", ["late", "late"])
    lines: list[str] = []
    batches = Batches(data_ranks=1, micro_batch=BATCH, accumulation=1)
    settings = config(0, tmp_path / "cache")
    found = training_batches(index, settings, batches, Share(), STEPS, IMAGENET, pin_memory=False, say=lines.append)
    assert lines == []
    ours = [next(found)]
    told = list(lines)
    assert told
    assert all(
        re.fullmatch(r"fetching shard \d of \d for the first batch into .*, [0-9.]+ MB/s", line) for line in told
    )
    ours += found
    assert lines == told
    assert_same(ours, training(index, settings, Share()))


def test_a_cache_that_cannot_be_made_is_the_users_to_mend(index: ShardIndex, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"data\.cache\.dir"):
        training(index, config(0, tmp_path / "file" / "cache"), Share())
