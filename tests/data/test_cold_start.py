"""What is said while the first shards come into the cache."""

import os
import re
import time
from pathlib import Path

import pytest

from dist_alexnet.data import cold_start
from dist_alexnet.data.cold_start import said
from shards.cache import ShardCache
from shards.index import ShardRow

ROWS = [ShardRow(f"train-{i}.tar", 1_000_000, 10, f"{i:064x}", 0) for i in range(3)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardCache:
    monkeypatch.setattr(cold_start, "EVERY_S", 0.05)
    return ShardCache(tmp_path)


def come(cache: ShardCache, row: ShardRow) -> None:
    (cache.folder / f"{row.sha256}.tar").write_bytes(bytes(row.bytes))


def wait_for(lines: list[str], what: str) -> str:
    until_s = time.monotonic() + 20
    while time.monotonic() < until_s:
        found = [line for line in lines if what in line]
        if found:
            return found[-1]
        time.sleep(0.01)
    raise AssertionError(f"{what!r} was not said: {lines}")


def test_it_counts_shards_and_their_speed_whoever_fetches_them(cache: ShardCache) -> None:
    lines: list[str] = []
    with said(cache, ROWS, lines.append):
        assert wait_for(lines, "shard 1 of 3").endswith(" 0.0 MB/s")
        come(cache, ROWS[1])
        line = wait_for(lines, "shard 2 of 3")
        assert str(cache.folder) in line
        assert float(re.findall(r"([0-9.]+) MB/s", line)[0]) > 0
        (cache.folder / f"{ROWS[0].sha256}.part").write_bytes(bytes(ROWS[0].bytes // 2))
        assert "shard 2 of 3" in lines[-1]
    count = len(lines)
    time.sleep(0.2)
    assert len(lines) == count  # it ends with the block


def test_nothing_is_said_where_all_are_there_or_all_is_quick(
    cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    for row in ROWS:
        come(cache, row)
    with said(cache, ROWS, lines.append):
        time.sleep(0.2)
    os.unlink(cache.folder / f"{ROWS[0].sha256}.tar")
    monkeypatch.setattr(cold_start, "EVERY_S", 60)
    begin_s = time.monotonic()
    with pytest.raises(KeyError), said(cache, ROWS, lines.append):
        raise KeyError
    assert lines == []
    assert time.monotonic() - begin_s < 20
