"""A set of small shards behind a server, and storage whose pauses and time limits are a test's."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shards import storage
from shards.index import ShardIndex
from shards.indexing import index_shards
from tests.shards.pictures import members, write_tar

if TYPE_CHECKING:
    from tests.servers.faulty import FaultyServer

SHARDS, SAMPLES = 6, 5  # a shard


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.05, 0.05, 0.1))
    monkeypatch.setattr(storage, "REQUEST_S", 0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`SHARDS` tars and their index."""
    folder = tmp_path / "set"
    folder.mkdir()
    for shard in range(SHARDS):
        write_tar(folder / f"train-{shard}.tar", members(SAMPLES, first=SAMPLES * shard))
    index_shards(f"{folder}/train-{{0..{SHARDS - 1}}}.tar")
    return folder


@pytest.fixture
def server(folder: Path) -> "Iterator[FaultyServer]":
    for package in ("aiohttp", "fsspec"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'dist-alexnet[dev]'")
    from tests.servers.faulty import FaultyServer

    with FaultyServer(folder) as server:
        yield server


@pytest.fixture
def index(server: "FaultyServer") -> ShardIndex:
    """The index as it is read over HTTP."""
    from shards.index import read_index

    return read_index(f"{server.url}/train.index.json")
