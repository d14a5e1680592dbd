"""Many processes, killed builds and their journal; what is written against webdataset's own writer."""

import hashlib
import json
import os
import random
import signal
import string
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest

from shards import build, journal, tar_writer
from shards.build import build_shards
from shards.errors import DistAlexnetError, InputError
from shards.reader import ShardReader
from shards.sources.source import SourceSample
from tests.shards.pictures import jpeg

ROOT = Path(__file__).parents[2]


def load(i: int, log: str = "", fail_at: int = -1, kill: bool = False) -> bytes:
    """Sample i; its number goes into the file `log`."""
    if log:
        with open(log, "a") as file:
            file.write(f"{i}\n")
    if i == fail_at:
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise InputError(f"sample {i} is bad")
    return jpeg(i)


class Numbered:
    """Samples that travel to other processes."""

    recipe = "numbered"
    classes = ("ant", "bee", "cat")

    def __init__(self, count: int, log: str = "", fail_at: int = -1, kill: bool = False) -> None:
        self.count, self.more = count, (log, fail_at, kill)

    def samples(self, split: str) -> list[SourceSample]:
        return [SourceSample(f"n{i:04d}", i % 3, partial(load, i, *self.more)) for i in range(self.count)]


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_number_of_processes_changes_no_byte(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for name, workers in (("one", 1), ("two", 2)):
        build_shards(
            Numbered(47), "train", str(tmp_path / name), samples_per_shard=5, workers=workers,
            progress=lambda *at: seen.append(at),
        )  # fmt: skip
    assert sums(tmp_path / "one") == sums(tmp_path / "two")
    assert len(seen) == 20
    assert seen[9] == seen[19] == (47, 47)
    assert seen == sorted(seen[:10]) + sorted(seen[10:])


def test_the_bytes_are_those_of_webdatasets_writer(tmp_path: Path) -> None:
    from webdataset import TarWriter

    class Named(Numbered):
        def samples(self, split: str) -> list[SourceSample]:
            keys = ["plain", "dir/of/it", "k" * 96, "k" * 97, "schlüssel-猫", "x" * 300]
            return [SourceSample(key, 10**i, partial(load, i)) for i, key in enumerate(keys)]

        classes = tuple(str(i) for i in range(100001))

    index = build_shards(Named(0), "train", str(tmp_path))
    with (tmp_path / "theirs.tar").open("wb") as file, TarWriter(
        file, encoder=False, mtime=0, user="root", group="root", mode=0o644, compress=False
    ) as tar:  # fmt: skip
        for raw in ShardReader(index).read(range(6)):
            tar.write({"__key__": raw.key, "jpg": raw.jpeg, "cls": str(raw.label).encode()})
    assert (tmp_path / "train-000000.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()


def test_headers_are_those_of_tarfile() -> None:
    generator = random.Random(0)
    for _ in range(500):
        name = "".join(generator.choices(string.printable[:95] + "é", k=generator.choice((1, 20, 99, 100, 101, 300))))
        info = tarfile.TarInfo(name)
        info.size, info.uname, info.gname = generator.randrange(2 ** generator.randrange(1, 33)), "root", "root"
        assert tar_writer._header(name, info.size) == info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def test_an_error_in_a_process_is_said_and_leaves_only_whole_tars(tmp_path: Path) -> None:
    build_shards(Numbered(20), "train", str(tmp_path / "whole"), samples_per_shard=2)
    with pytest.raises(InputError, match="sample 13 is bad"):
        build_shards(Numbered(20, fail_at=13), "train", str(tmp_path / "a"), samples_per_shard=2, workers=2)
    whole = sums(tmp_path / "whole")
    left = {name: value for name, value in sums(tmp_path / "a").items() if name != ".train.build.json"}
    assert left.items() < whole.items()
    assert "train.index.json" not in left


def test_a_process_that_is_killed_is_said_and_the_build_goes_on(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with pytest.raises(DistAlexnetError, match="was killed, perhaps for want of memory"):
        build_shards(Numbered(20, fail_at=13, kill=True), "train", str(tmp_path / "a"), samples_per_shard=2, workers=2)
    assert list((tmp_path / "a").glob(".*.tmp"))  # what the killed process was writing
    build_shards(Numbered(20, log=log), "train", str(tmp_path / "a"), samples_per_shard=2, workers=2)
    build_shards(Numbered(20), "train", str(tmp_path / "b"), samples_per_shard=2)
    assert sums(tmp_path / "a") == sums(tmp_path / "b")


def test_finished_tars_are_checked_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "EVERY_S", 0.0)
    log, folder = tmp_path / "log", tmp_path / "a"
    with pytest.raises(InputError, match="is bad"):
        build_shards(Numbered(20, fail_at=0), "train", str(folder), samples_per_shard=2)
    finished = set(json.loads((folder / ".train.build.json").read_text())["finished"])
    assert finished == {path.name for path in folder.glob("*.tar")}
    assert 0 < len(finished) < 10
    build_shards(Numbered(20, log=str(log)), "train", str(folder), samples_per_shard=2)
    assert len(log.read_text().split()) == 20 - 2 * len(finished)
    build_shards(Numbered(20), "train", str(tmp_path / "b"), samples_per_shard=2)
    assert sums(folder) == sums(tmp_path / "b")


def test_what_is_not_the_journals_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "EVERY_S", 0.0)
    with pytest.raises(InputError, match="is bad"):
        build_shards(Numbered(20, fail_at=0), "train", str(tmp_path), samples_per_shard=2)
    before = sums(tmp_path)
    for source, size, seed in ((Numbered(19), 2, 0), (Numbered(20), 3, 0), (Numbered(20), 2, 1)):
        with pytest.raises(InputError, match="holds the beginning of another build of split train"):
            build_shards(source, "train", str(tmp_path), samples_per_shard=size, seed=seed)
    assert sums(tmp_path) == before
    first = min(tmp_path.glob("*.tar"))
    data = first.read_bytes()
    other = data.replace(b"\xff\xd8\xff", b"\xff\xd8\xfe", 1)
    for damaged in (other, data[:-9000], b""):
        first.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{first.name} is no longer what an earlier start wrote"):
            build_shards(Numbered(20), "train", str(tmp_path), samples_per_shard=2)
        assert first.read_bytes() == damaged
    first.unlink()  # one that is gone is made again
    (tmp_path / ".train.build.json").write_text("{")
    with pytest.raises(InputError, match=r"is damaged .*take it away"):
        build_shards(Numbered(20), "train", str(tmp_path), samples_per_shard=2)
    (tmp_path / ".train.build.json").write_text(json.dumps({"built_from": "x", "finished": []}))
    with pytest.raises(InputError, match="is damaged"):
        build_shards(Numbered(20), "train", str(tmp_path), samples_per_shard=2)


STALL = """
import sys, time
from shards.build import build_shards
from tests.shards.test_build_workers import Numbered, load
from shards.sources.source import SourceSample
from functools import partial
def slow(i):
    time.sleep(0.05 if i % 40 else 30)
    return load(i)
class Slow(Numbered):
    def samples(self, split):
        return [SourceSample(s.key, s.label, partial(slow, i)) for i, s in enumerate(super().samples(split))]
if __name__ == "__main__":
    build_shards(Slow(80), "train", sys.argv[1], samples_per_shard=2, workers=2)
"""


def test_a_build_killed_with_its_processes_running_goes_on(tmp_path: Path) -> None:
    (tmp_path / "stall.py").write_text(STALL)
    folder = tmp_path / "a"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, str(tmp_path / "stall.py"), str(folder)], env=environment)
    until_s = time.monotonic() + 60
    while len(list(folder.glob("*.tar"))) < 3:
        assert time.monotonic() < until_s
        assert child.poll() is None
        time.sleep(0.05)
    child.kill()
    child.wait()
    while len(list(folder.glob("*.tar"))) < 40 and any(_writes(folder)):  # its processes end with it
        assert time.monotonic() < until_s
        time.sleep(0.05)
    assert not (folder / "train.index.json").exists()
    build_shards(Numbered(80), "train", str(folder), samples_per_shard=2)
    build_shards(Numbered(80), "train", str(tmp_path / "b"), samples_per_shard=2)
    assert sums(folder) == sums(tmp_path / "b")


def _writes(folder: Path) -> list[str]:
    """Processes that have a file of `folder` open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link).startswith(str(folder)):
                found.append(link.parts[2])
        except OSError:
            continue
    return found


def test_a_million_samples_are_not_a_million_objects() -> None:
    import numpy as np

    from shards.sources.slices import Slices

    count = 50_000
    numbers = np.arange(count)
    keys = np.char.add("n01440764_", numbers.astype("U8")).astype("S32")
    slices = Slices(("/nowhere",), keys, numbers % 3, np.zeros(count, np.int8), numbers * 512, numbers + 1)
    held = sum(column.nbytes for column in (slices.keys, slices.labels, slices.which, slices.offsets, slices.lengths))
    assert held / count < 64
    assert slices[41_000].key == "n01440764_41000"
    build._check_samples(slices, Numbered(0), "train")
    with pytest.raises(InputError, match="'n01440764_7' comes twice"):
        build._check_samples(slices.take(np.array([3, 7, 9, 7])), Numbered(0), "train")
