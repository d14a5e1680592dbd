import errno
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from shards import reader as reader_module
from shards import storage
from shards.errors import StorageFault
from shards.index import ShardIndex, read_index
from shards.indexing import index_shards
from shards.reader import RawSample, ShardReader
from tests.shards.pictures import jpeg, members, write_tar


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for shard in range(4):
        write_tar(folder / f"train-{shard}.tar", members(5, first=5 * shard))
    index_shards(f"{folder}/train-{{0..3}}.tar")
    return folder


@pytest.fixture
def index(made: Path, tmp_path: Path) -> ShardIndex:
    return read_index(f"{shutil.copytree(made, tmp_path / 'set')}/train.index.json")


def test_samples_come_in_the_asked_order(index: ShardIndex) -> None:
    ids = [17, 0, 0, 9, 4]
    for asked in (ids, tuple(ids), np.array(ids), np.array(ids, dtype=np.uint32)):
        got = ShardReader(index).read(asked)
        assert got == [RawSample(i, f"s{i:04d}", jpeg(i), i % 5, index.shard_url(i // 5)) for i in ids]
    assert all(type(raw.sample_id) is int and type(raw.label) is int for raw in got)
    assert ShardReader(index).read([]) == []


def test_only_the_shards_needed_are_opened(index: ShardIndex) -> None:
    reader = ShardReader(index)
    assert reader.opened == set()
    reader.read([6, 16, 7])
    assert reader.opened == {1, 3}


def test_numbers_outside_the_index_are_errors(index: ShardIndex) -> None:
    for ids in ([-1], [20], [0, 99]):
        with pytest.raises(IndexError):
            ShardReader(index).read(ids)


def test_few_files_stay_open(index: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MAX_OPEN_FILES", 2)
    reader = ShardReader(index)
    fds = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert [raw.key for raw in reader.read([0, 5, 10, 15])] == ["s0000", "s0005", "s0010", "s0015"]
    assert len(list(Path("/proc/self/fd").iterdir())) == fds + 2
    assert reader.opened == {0, 1, 2, 3}
    reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == fds
    assert reader.read([3])[0].key == "s0003"


def test_it_travels_to_a_worker(index: ShardIndex) -> None:
    reader = ShardReader(index)
    for _ in range(2):  # before and after the first use
        other = pickle.loads(pickle.dumps(reader))
        assert other.opened == set()
        assert other.read([3, 19]) == reader.read([3, 19])


@pytest.mark.parametrize("grow", [1, -1, -512, 4096])
def test_a_shard_of_another_size_is_a_storage_fault(index: ShardIndex, grow: int) -> None:
    path = Path(index.shard_url(2))
    data = path.read_bytes()
    path.write_bytes(data[:grow] if grow < 0 else data + bytes(grow))
    reader = ShardReader(index)
    reader.read([0])
    with pytest.raises(
        StorageFault, match=rf"train-2\.tar has {len(data) + grow} bytes where the index says {len(data)}"
    ):
        reader.read([10])
    assert 2 not in reader.opened


def test_a_missing_shard_is_a_storage_fault(index: ShardIndex) -> None:
    Path(index.shard_url(2)).unlink()
    with pytest.raises(StorageFault, match=r"train-2\.tar could not be read \(No such file"):
        ShardReader(index).read([10])


def test_a_shard_cut_while_it_is_open_is_a_storage_fault(index: ShardIndex) -> None:
    reader = ShardReader(index)
    reader.read([10])
    with open(index.shard_url(2), "r+b") as file:
        file.truncate(2000)
    with pytest.raises(StorageFault, match=r"train-2\.tar gave \d+ bytes"):
        reader.read([14])


@pytest.mark.parametrize("damage", ["zeros", "other name", "other size", "moved"])
def test_a_header_unlike_the_index_is_a_storage_fault(index: ShardIndex, damage: str) -> None:
    path = Path(index.shard_url(1))
    data = bytearray(path.read_bytes())
    row = index.samples[7]
    at = int(row["offset"]) - 512
    if damage == "zeros":
        data[at : at + 512] = bytes(512)
    elif damage == "other name":
        content = [(name.replace(".jpg", ".png"), body) for name, body in members(5, first=5)]
        data = bytearray(write_tar(path, content).read_bytes())
    elif damage == "other size":
        content = [(name, body[:-1] if name.endswith("jpg") else body) for name, body in members(5, first=5)]
        data = bytearray(write_tar(path, content).read_bytes())
    else:
        data = data[512:] + bytes(512)
    path.write_bytes(data)
    with pytest.raises(StorageFault, match=rf"train-1\.tar is not what the index describes: sample 7 at byte {at}"):
        ShardReader(index).read([7])


def test_a_picture_with_one_other_bit_is_a_storage_fault(index: ShardIndex) -> None:
    """Nothing else would tell: it has its length and its place, and it decodes."""
    path = Path(index.shard_url(1))
    data = bytearray(path.read_bytes())
    data[int(index.samples["offset"][7]) + 300] ^= 1
    path.write_bytes(data)
    reader = ShardReader(index)
    with pytest.raises(StorageFault, match=r"train-1\.tar is not .* sample 7 .*CRC-32 \w{8}, expected \w{8}"):
        reader.read([7])
    assert reader.key(7) == "s0007"
    assert reader.read([6, 8])


def test_a_lost_handle_is_opened_anew(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ESTALE twice, as a network folder gives it: said, tried again, and the same bytes; for good it is a fault."""
    expected = ShardReader(index).read([0])
    reader, real, failures = ShardReader(index), os.pread, [errno.ESTALE, errno.EIO]

    def flaky(file: int, length: int, start: int) -> bytes:
        if failures:
            raise OSError(failures.pop(), "lost for a moment")
        return real(file, length, start)

    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.01, 0.01))
    monkeypatch.setattr(os, "pread", flaky)
    assert reader.read([0]) == expected
    assert caplog.text.count("trying again") == 2
    failures.extend([errno.EIO] * 3)
    with pytest.raises(StorageFault, match="could not be read"):
        reader.read([0])
