"""Shards over the S3 protocol (moto's server, s3fs), with faults put in between."""

import importlib.util
import itertools
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shards import storage
from shards.build import build_shards
from shards.cache import ShardCache
from shards.errors import InputError, StorageFault
from shards.index import ShardIndex, read_index
from shards.indexing import index_shards
from shards.reader import ShardReader
from tests.servers.conftest import SAMPLES, SHARDS
from tests.servers.test_http import expected
from tests.shards.pictures import NoiseSource

if TYPE_CHECKING:
    from tests.servers.faulty import FaultyProxy

ALL = range(SHARDS * SAMPLES)
MISSING = [name for name in ("s3fs", "moto", "flask", "aiohttp") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install 'dist-alexnet[dev]'"
)


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def proxy(upstream: str, monkeypatch: pytest.MonkeyPatch) -> "Iterator[FaultyProxy]":
    from tests.servers.faulty import FaultyProxy

    with FaultyProxy(upstream) as proxy:
        for name, value in {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        _forget_clients()
        yield proxy
        _forget_clients()


def _forget_clients() -> None:
    """Clients are kept, with the endpoint that they were made for."""
    import s3fs

    storage._client.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(proxy: "FaultyProxy", folder: Path) -> str:
    """A bucket with the set of `folder` in it."""
    import s3fs

    name = f"b-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem().mkdir(name)
    for path in folder.iterdir():
        storage.write_atomic(f"s3://{name}/set/{path.name}", path.read_bytes())
    return f"s3://{name}/set"


@pytest.fixture
def index(bucket: str) -> ShardIndex:
    return read_index(f"{bucket}/train.index.json")


def test_samples_come_by_ranges_or_through_the_cache(proxy: "FaultyProxy", index: ShardIndex, tmp_path: Path) -> None:
    assert ShardReader(index).read(list(ALL)) == expected(index, list(ALL))
    proxy.asked.clear()
    assert ShardReader(index, ShardCache(tmp_path / "cache")).read(list(ALL)) == expected(index, list(ALL))
    assert proxy.sent("train-") == sum(row.bytes for row in index.shards)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("fault", ["status-500", "status-503", "reset", "cut", "stall", "wrong"])
def test_faults_never_give_a_wrong_sample_nor_a_hang(
    proxy: "FaultyProxy", index: ShardIndex, tmp_path: Path, fault: str, cached: bool
) -> None:
    reader = ShardReader(index, ShardCache(tmp_path / "cache") if cached else None)
    begin_s = time.monotonic()
    proxy.fail("train-1.tar", [fault, None, fault])
    assert reader.read([7, 2, 8]) == expected(index, [7, 2, 8])
    proxy.fail("train-3.tar", itertools.repeat(fault))
    with pytest.raises(StorageFault, match=r"train-3\.tar"):
        reader.read([17])
    assert time.monotonic() - begin_s < 60


def test_what_is_missing_is_said_at_once(bucket: str) -> None:
    begin_s = time.monotonic()
    assert not storage.exists(f"{bucket}/nothing.tar")
    with pytest.raises(StorageFault, match="is missing"):
        storage.read_all(f"{bucket}/nothing.tar")
    with pytest.raises(InputError, match="there is no index"):
        read_index(f"{bucket}/val.index.json")
    assert time.monotonic() - begin_s < 10


def test_sets_are_built_and_indexed_there(bucket: str, tmp_path: Path) -> None:
    local = build_shards(NoiseSource(12), "made", str(tmp_path / "made"), samples_per_shard=5)
    made = build_shards(NoiseSource(12), "made", bucket, samples_per_shard=5)
    assert made.digest == local.digest
    before = storage.read_all(f"{bucket}/train.index.npy")
    storage.remove(f"{bucket}/train.index.npy")
    storage.remove(f"{bucket}/train.index.json")
    assert not storage.exists(f"{bucket}/train.index.json")
    assert len(index_shards(f"{bucket}/train-{{0..{SHARDS - 1}}}.tar")) == len(ALL)
    assert storage.read_all(f"{bucket}/train.index.npy") == before
    assert not storage.exists(f"{bucket}/.train.train-0.tar.scan")
