"""The node's cache over a real server: each shard once, whole or not at all, whoever dies or runs out of disk."""

import errno
import fcntl
import hashlib
import itertools
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from shards import cache as cache_module
from shards import storage
from shards.cache import ShardCache
from shards.errors import InputError, StorageFault
from shards.index import ShardIndex, read_index
from shards.order import Order
from shards.reader import ShardReader
from tests.servers.conftest import SAMPLES, SHARDS
from tests.servers.test_http import PASSING, expected

if TYPE_CHECKING:
    from tests.servers.faulty import FaultyServer

ROOT = Path(__file__).parents[2]
ALL = range(SHARDS * SAMPLES)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def tars(place: Path) -> set[str]:
    return {path.stem for path in place.glob("*.tar")}


def sums(index: ShardIndex, *shards: int) -> set[str]:
    return {index.shards[shard].sha256 for shard in shards}


def tar_bytes(index: ShardIndex) -> int:
    return sum(row.bytes for row in index.shards)


def test_each_shard_is_fetched_once_and_read_from_there(server: "FaultyServer", index: ShardIndex, place: Path) -> None:
    reader = ShardReader(index, ShardCache(place))
    for _ in range(2):
        assert reader.read(list(ALL)) == expected(index, list(ALL))
    assert server.sent("train-") == tar_bytes(index)
    assert ShardReader(index, ShardCache(place)).read([3, 28]) == expected(index, [3, 28])  # another process, or run
    assert server.sent("train-") == tar_bytes(index)
    for row in index.shards:
        assert hashlib.sha256((place / f"{row.sha256}.tar").read_bytes()).hexdigest() == row.sha256
    assert not list(place.glob("*.part"))


def test_only_what_is_needed_is_fetched(server: "FaultyServer", index: ShardIndex, place: Path) -> None:
    ShardReader(index, ShardCache(place)).read([6, 16, 7])
    assert tars(place) == sums(index, 1, 3)


def test_local_shards_are_read_in_place(folder: Path, place: Path) -> None:
    index = read_index(f"{folder}/train.index.json")
    assert ShardReader(index, ShardCache(place)).read([0, 29]) == expected(index, [0, 29])
    assert not list(place.iterdir())


@pytest.mark.parametrize("fault", [*PASSING, "whole"])
def test_a_passing_fault_changes_nothing(
    server: "FaultyServer", index: ShardIndex, place: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`wrong` has the right length: only the sum of the whole shard tells. `whole`: no ranges, which will do here."""
    server.fail("train-2.tar", [fault, None, fault])
    assert ShardReader(index, ShardCache(place)).read([11, 3]) == expected(index, [11, 3])
    assert tars(place) == sums(index, 0, 2)
    if fault == "wrong":
        assert "another sha256" in caplog.text


@pytest.mark.parametrize("fault", ["status-500", "cut", "stall", "wrong"])
def test_a_lasting_fault_stops_in_time_and_leaves_nothing_half(
    server: "FaultyServer", index: ShardIndex, place: Path, fault: str
) -> None:
    server.fail("train-2.tar", itertools.repeat(fault))
    reader = ShardReader(index, ShardCache(place))
    begin_s = time.monotonic()
    with pytest.raises(StorageFault, match=r"train-2\.tar"):
        reader.read([3, 11])
    assert time.monotonic() - begin_s < 30
    assert {path.name for path in place.iterdir()} == {f"{one}.tar" for one in sums(index, 0)} | {"room.lock"}


def test_a_server_that_hangs_is_given_the_time_of_a_block_and_not_of_the_shard(
    server: "FaultyServer", index: ShardIndex, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven tries of as long as a whole shard may take are an hour, in which the other ranks give up."""
    monkeypatch.setattr(storage, "STREAM_BLOCK_BYTES", 1024)
    monkeypatch.setattr(storage, "SLOWEST_BYTES_PER_S", index.shards[2].bytes // 60)
    server.fail("train-2.tar", itertools.repeat("stall"))
    begin_s = time.monotonic()
    with pytest.raises(StorageFault, match="no answer in time"):
        ShardReader(index, ShardCache(place)).read([11])
    assert time.monotonic() - begin_s < 30


@pytest.mark.parametrize("held", ["room.lock", "tar"])
def test_a_process_that_was_suspended_with_a_lock_costs_no_sample(
    server: "FaultyServer",
    index: ShardIndex,
    place: Path,
    held: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As a scheduler suspends a job; its locks stay."""
    monkeypatch.setattr(cache_module, "STALL_S", 0.3)
    ShardReader(index, ShardCache(place)).read([0])
    with (place / (f"{index.shards[0].sha256}.tar" if held == "tar" else held)).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        reader = ShardReader(index, ShardCache(place))
        assert reader.read([1, 7]) == expected(index, [1, 7])  # by ranges
    assert "has held a lock" in caplog.text
    assert tars(place) == sums(index, 0) | (sums(index, 1) if held == "tar" else set())


READ = """
import sys
from pathlib import Path
from shards.cache import ShardCache
from shards.index import read_index
from shards.reader import ShardReader
index = read_index(sys.argv[1])
samples = ShardReader(index, ShardCache(Path(sys.argv[2]))).read(range(len(index)))
print(len({sample.key for sample in samples}))
"""


def start(server: "FaultyServer", place: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", READ, f"{server.url}/train.index.json", str(place)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def test_processes_share_one_download(server: "FaultyServer", index: ShardIndex, place: Path) -> None:
    children = [start(server, place) for _ in range(3)]
    for child in children:
        out, _ = child.communicate(timeout=60)
        assert (child.returncode, out) == (0, b"%d\n" % len(ALL))
    assert server.sent("train-") == tar_bytes(index)


FIGHT = """
import random, sys
from pathlib import Path
from shards.cache import ShardCache
from shards.index import read_index
from shards.reader import ShardReader
index = read_index(sys.argv[1])
draw = random.Random(int(sys.argv[4]))
for _ in range(12):
    reader = ShardReader(index, ShardCache(Path(sys.argv[2]), int(sys.argv[3])))
    for sample in reader.read([draw.randrange(len(index)) for _ in range(4)]):
        assert sample.key == f"s{sample.sample_id:04d}"
"""


def test_processes_that_fight_for_room_read_right(server: "FaultyServer", index: ShardIndex, place: Path) -> None:
    room = 2 * max(row.bytes for row in index.shards)
    arguments = [sys.executable, "-c", FIGHT, f"{server.url}/train.index.json", str(place), str(room)]
    children = [subprocess.Popen([*arguments, str(seed)], cwd=ROOT) for seed in range(3)]
    most = 0
    while any(child.poll() is None for child in children):
        most = max(most, len(tars(place)) if place.exists() else 0)
        time.sleep(0.01)
    assert [child.returncode for child in children] == [0, 0, 0]
    assert most <= 2
    assert not list(place.glob("*.part"))


def test_a_killed_process_is_not_waited_for_and_its_rest_is_cleaned(
    server: "FaultyServer", index: ShardIndex, place: Path
) -> None:
    server.fail("train-0.tar", ["stall"])
    server.fail("train-5.tar", ["stall"])
    child = start(server, place)
    while not list(place.glob("*.part")) or not server.sent("train-0"):
        time.sleep(0.02)
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert [path.stem for path in place.glob("*.part")] == list(sums(index, 0))
    begin_s = time.monotonic()
    assert ShardReader(index, ShardCache(place)).read([29]) == expected(index, [29])
    assert not list(place.glob("*.part"))  # taken away by one who wanted another shard
    assert ShardReader(index, ShardCache(place)).read([0]) == expected(index, [0])
    assert time.monotonic() - begin_s < 10


def test_one_that_is_stopped_while_it_fetches_is_not_waited_for_long(
    server: "FaultyServer", index: ShardIndex, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "STALL_S", 0.3)
    server.fail("train-0.tar", ["stall", None])
    child = start(server, place)
    while not list(place.glob("*.part")):
        time.sleep(0.02)
        assert child.poll() is None
    child.send_signal(signal.SIGSTOP)
    try:
        assert ShardReader(index, ShardCache(place)).read([0, 1]) == expected(index, [0, 1])  # by ranges
        assert not tars(place)
    finally:
        child.kill()
        child.communicate()


def test_the_least_recently_used_go_first_and_none_that_is_read(
    server: "FaultyServer", index: ShardIndex, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    room = ShardCache(place, max_bytes=3 * max(row.bytes for row in index.shards))

    def read(*samples: int) -> ShardReader:
        reader = ShardReader(index, room)
        assert reader.read(list(samples)) == expected(index, list(samples))
        time.sleep(0.02)  # times of use differ
        return reader

    for sample in (0, 5, 10, 0):
        read(sample)
    holder = read(5)  # shard 1, kept open
    assert tars(place) == sums(index, 0, 1, 2)
    read(15)
    assert tars(place) == sums(index, 0, 1, 3)  # 2 was used longest ago
    read(20)
    assert tars(place) == sums(index, 1, 3, 4)
    both = read(15, 20)
    assert not caplog.text
    sent = server.sent("train-5")
    read(25, 26)  # all that is there is being read: by ranges, said once
    read(27)
    assert tars(place) == sums(index, 1, 3, 4)
    assert sent < server.sent("train-5") < index.shards[5].bytes
    assert caplog.text.count("no room") == 1
    assert "reading samples by ranges instead" in caplog.text
    assert holder.read([6]) == expected(index, [6])
    holder.close()
    both.close()


def test_a_shard_larger_than_the_cache_is_read_by_ranges(
    server: "FaultyServer", index: ShardIndex, place: Path
) -> None:
    assert ShardReader(index, ShardCache(place, max_bytes=1000)).read(list(ALL)) == expected(index, list(ALL))
    assert not tars(place)


@pytest.mark.parametrize("full", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_said_once_and_costs_no_sample(
    server: "FaultyServer",
    index: ShardIndex,
    place: Path,
    full: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fallocate(*_: object) -> None:
        raise OSError(full, os.strerror(full))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    assert ShardReader(index, ShardCache(place)).read(list(ALL)) == expected(index, list(ALL))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(place) in caplog.text
    assert {path.name for path in place.iterdir()} == {"room.lock"}


def test_a_folder_without_locks_costs_no_sample(
    server: "FaultyServer",
    index: ShardIndex,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ShardReader(index, ShardCache(place)).read([0])

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(cache_module.fcntl, "flock", flock)
    for _ in range(2):
        assert ShardReader(index, ShardCache(place)).read(list(ALL)) == expected(index, list(ALL))
    assert "No locks available" in caplog.text


def test_a_shard_that_rots_in_the_cache_is_fetched_again(
    server: "FaultyServer", index: ShardIndex, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = ShardReader(index, ShardCache(place))
    reader.read([8])
    path = place / f"{index.shards[1].sha256}.tar"
    data = bytearray(path.read_bytes())
    data[int(index.samples["offset"][7]) + 100] ^= 1
    path.write_bytes(data)
    assert reader.read([7]) == expected(index, [7])
    assert "CRC-32" in caplog.text
    assert reader.read([7, 8]) == expected(index, [7, 8])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    path.write_bytes(data[:-512])  # and one that was cut
    assert ShardReader(index, ShardCache(place)).read([7]) == expected(index, [7])


def test_the_same_name_elsewhere_is_another_file(
    server: "FaultyServer", index: ShardIndex, place: Path, folder: Path
) -> None:
    """webdataset's cache goes by the file's name, and gives one server's shard for another's."""
    ShardReader(index, ShardCache(place)).read([0])
    from shards.indexing import index_shards
    from tests.shards.pictures import members, write_tar

    for path in folder.iterdir():
        path.unlink()
    write_tar(folder / "train-0.tar", members(3, first=100))
    index_shards(f"{folder}/train-0.tar")
    other = read_index(f"{server.url}/train.index.json")
    assert ShardReader(other, ShardCache(place)).read([1])[0].key == "s0101"
    assert len(tars(place)) == 2


def test_what_comes_next_is_fetched_in_advance_and_nothing_else(
    server: "FaultyServer", index: ShardIndex, place: Path
) -> None:
    order = Order(index.samples_per_shard, 0, 2, 1)
    lanes = [0]
    reader = ShardReader(index, ShardCache(place), partial(order.upcoming, lanes=lanes))
    shards, until = order.upcoming(0, lanes)
    assert 0 < len(shards) < SHARDS
    assert 0 < until < order.epoch_samples
    pickle.loads(pickle.dumps(reader)).stands_at(0)  # as in a worker
    deadline_s = time.monotonic() + 20
    while tars(place) != sums(index, *shards):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    positions = np.arange(0, order.epoch_samples, 2)
    for at in range(0, len(positions), 3):
        reader.stands_at(int(positions[at]))
        reader.read(order.samples(positions[at : at + 3]))
    needed = set((order.samples(positions) // SAMPLES).tolist())
    ahead = {shard for position in positions for shard in order.upcoming(int(position), lanes)[0]}
    assert sums(index, *needed) <= tars(place) <= sums(index, *ahead)


def test_a_fault_in_advance_is_left_to_the_reader(server: "FaultyServer", index: ShardIndex, place: Path) -> None:
    order = Order(index.samples_per_shard, 0, 1, 2)
    reader = ShardReader(index, ShardCache(place), partial(order.upcoming, lanes=[0]))
    first = int(order.samples(np.array([0]))[0])
    for shard in range(SHARDS):
        if shard != first // SAMPLES:
            server.fail(f"train-{shard}.tar", itertools.repeat("status-500"))
    reader.stands_at(0)
    assert reader.read([first]) == expected(index, [first])
    with pytest.raises(StorageFault, match="status 500"):
        reader.read(list(ALL))


def test_a_lasting_fault_is_not_asked_for_twice_over(server: "FaultyServer", index: ShardIndex, place: Path) -> None:
    """Whoever waits for a shard that is being fetched in advance hears of the fault that this met."""
    order = Order(index.samples_per_shard, 0, 1, 2)
    reader = ShardReader(index, ShardCache(place), partial(order.upcoming, lanes=[0]))
    first = int(order.samples(np.array([0]))[0])
    name = index.shards[first // SAMPLES].name
    server.fail(name, itertools.repeat("status-500"))
    reader.stands_at(0)
    until_s = time.monotonic() + 10
    while not any(asked == name for asked, _, _ in server.asked):
        assert time.monotonic() < until_s
        time.sleep(0.005)
    with pytest.raises(StorageFault, match="status 500"):
        reader.read([first])
    assert len([asked for asked, _, _ in server.asked if asked == name]) == len(storage.RETRY_DELAYS_S) + 1
    server.fail(name, ())
    assert reader.read([first]) == expected(index, [first])  # and a later reading tries for itself


def test_how_much_has_come_is_known(server: "FaultyServer", index: ShardIndex, place: Path) -> None:
    cache = ShardCache(place)
    rows = index.shards[:3]
    assert (cache.come_bytes(rows), cache.holds(rows[0])) == (0, False)
    assert cache.fetch(index.shard_url(0), rows[0])
    assert (cache.come_bytes(rows), cache.holds(rows[0])) == (rows[0].bytes, True)
    with (place / f"{rows[1].sha256}.part").open("wb") as part:
        os.posix_fallocate(part.fileno(), 0, 2**20)
        part.write(bytes(2**18))
        part.flush()
        # As far as the file system tells what is written from what is reserved.
        assert cache.come_bytes(rows) - rows[0].bytes in (2**18, 2**20)


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"data\.cache\.dir"):
        ShardCache(tmp_path / "file" / "cache")


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_in_a_storm_every_sample_that_comes_is_right(
    server: "FaultyServer", index: ShardIndex, place: Path, seed: int, cached: bool
) -> None:
    """Four of ten answers are bad in some way; a read that fails is done again, as by a run that is taken up."""
    draw = random.Random(seed)
    kinds = ["status-500", "status-429", "reset", "cut", "unsized", "wrong", "stall"]
    for shard in range(SHARDS):
        server.fail(f"train-{shard}.tar", (draw.choice(kinds) if draw.random() < 0.4 else None for _ in range(10**6)))
    reader, right, begin_s = ShardReader(index, ShardCache(place) if cached else None), 0, time.monotonic()
    while right < 6:
        ids = draw.sample(ALL, 8)
        try:
            assert reader.read(ids) == expected(index, ids)
            right += 1
        except StorageFault:
            assert time.monotonic() - begin_s < 120
