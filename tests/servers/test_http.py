"""Shards over HTTP from a server that fails in every way: never a wrong sample, never a hang."""

import itertools
import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shards import storage
from shards.errors import InputError, StorageFault
from shards.index import ShardIndex, read_index
from shards.indexing import index_shards
from shards.reader import RawSample, ShardReader
from tests.servers.conftest import SAMPLES, SHARDS
from tests.shards.pictures import jpeg

if TYPE_CHECKING:
    from tests.servers.faulty import FaultyServer

PASSING = ["status-500", "status-503", "status-429", "reset", "cut", "unsized", "stall", "drip", "wrong"]
LIMIT_S = 30.0  # for a read whose every try fails


def expected(index: ShardIndex, ids: range | list[int]) -> list[RawSample]:
    return [RawSample(i, f"s{i:04d}", jpeg(i), i % 5, index.shard_url(i // SAMPLES)) for i in ids]


def test_all_samples_come_by_ranges(server: "FaultyServer", index: ShardIndex) -> None:
    ids = [17, 0, 29, 9, 4]
    assert ShardReader(index).read(ids) == expected(index, ids)
    longest = int((index.samples["length"] + index.samples["head"]).max())
    assert all(span and count <= longest for name, span, count in server.asked if name.endswith(".tar"))
    assert len([name for name, _, _ in server.asked if name.endswith(".tar")]) == len(ids)


def test_ranges_are_asked_for_side_by_side(server: "FaultyServer", index: ShardIndex) -> None:
    """A batch of 24 from a server that takes a quarter of a second for each: not six seconds."""
    ids = list(range(24))
    ShardReader(index).read(ids)  # sizes, connections
    for shard in range(SHARDS):
        server.fail(f"train-{shard}.tar", itertools.repeat("late"))
    reader, begin_s = ShardReader(index), time.monotonic()
    assert reader.read(ids) == expected(index, ids)
    assert time.monotonic() - begin_s < 3


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_said_and_changes_nothing(
    server: "FaultyServer", index: ShardIndex, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    for shard in range(SHARDS):
        server.fail(f"train-{shard}.tar", [fault, None, fault, fault, None])
    begin_s = time.monotonic()
    ids = range(0, SHARDS * SAMPLES, 4)
    assert ShardReader(index).read(list(ids)) == expected(index, list(ids))
    assert time.monotonic() - begin_s < LIMIT_S
    # aiohttp itself asks once more when a kept connection is dropped, and says nothing.
    assert caplog.text.count("again in") >= (2 if fault == "reset" else 6)
    assert re.match(
        rf"{server.url}/train-\d\.tar on {socket.gethostname()}: .* after [\d.]+ s, try 1 of 4", caplog.messages[0]
    )


@pytest.mark.parametrize("fault", [*PASSING, "whole", "status-403"])
def test_a_lasting_fault_is_a_storage_fault_in_time(server: "FaultyServer", index: ShardIndex, fault: str) -> None:
    reader = ShardReader(index)
    server.fail("train-2.tar", itertools.repeat(fault))
    begin_s = time.monotonic()
    with pytest.raises(StorageFault, match=r"train-2\.tar") as caught:
        reader.read([3, 11])
    assert time.monotonic() - begin_s < LIMIT_S
    assert "\n" not in str(caught.value)
    tries = [name for name, _, _ in server.asked if name == "train-2.tar"]
    assert len(tries) == {"whole": 1, "status-403": 1, "reset": 8}.get(fault, 4)  # reset: as above
    server.fail("train-2.tar", [])
    assert reader.read([11]) == expected(index, [11])  # a run that is started again goes on


def test_a_missing_shard_is_not_asked_for_again_and_again(
    server: "FaultyServer", index: ShardIndex, folder: Path
) -> None:
    (folder / "train-3.tar").unlink()
    begin_s = time.monotonic()
    with pytest.raises(StorageFault, match=r"train-3\.tar is missing"):
        ShardReader(index).read([16])
    assert time.monotonic() - begin_s < 5


@pytest.mark.parametrize("fault", PASSING)
def test_an_index_that_suffered_on_the_way_is_asked_for_again(server: "FaultyServer", folder: Path, fault: str) -> None:
    """And is no mistake of the user's, who would be told to index a good set anew."""
    server.fail("train.index.npy", [fault, fault, None])
    if fault != "wrong":  # wrong bytes of the JSON have no checksum
        server.fail("train.index.json", [fault, fault, None])
    index = read_index(f"{server.url}/train.index.json")
    assert index.digest == read_index(f"{folder}/train.index.json").digest
    server.fail("train.index.npy", itertools.repeat(fault))
    with pytest.raises(StorageFault, match=r"train\.index\.npy"):
        read_index(f"{server.url}/train.index.json")


def test_a_server_in_trouble_is_not_a_missing_index(server: "FaultyServer", folder: Path) -> None:
    """fsspec's own `exists` says no to any trouble: the user would be told to make an index that is there."""
    url = f"{server.url}/train.index.json"
    server.fail("train.index.json", ["reset", "status-503", None])
    assert len(read_index(url)) == SHARDS * SAMPLES
    with pytest.raises(InputError, match="there is no index"):
        read_index(f"{server.url}/val.index.json")
    (folder / "train.index.json").unlink()
    assert not storage.exists(url)
    with pytest.raises(StorageFault, match="could not be read"):
        storage.exists("http://127.0.0.1:9/train.index.json")  # nobody listens there


@pytest.mark.parametrize("fault", ["status-500", "cut", "stall"])
def test_tars_on_a_server_are_indexed_as_they_are(
    server: "FaultyServer", folder: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks that are tried again where they broke."""
    monkeypatch.setattr(storage, "STREAM_BLOCK_BYTES", 4096)
    for shard in range(SHARDS):
        server.fail(f"train-{shard}.tar", [None, fault, None])
    pattern = f"{server.url}/train-{{0..{SHARDS - 1}}}.tar"
    made = index_shards(pattern, str(tmp_path / "other"))
    assert made.shards == read_index(f"{folder}/train.index.json").shards
    assert ShardReader(made).read([7]) == expected(made, [7])
