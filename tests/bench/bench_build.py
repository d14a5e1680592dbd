"""Building shards without re-encoding, against `cp` of the same archive.

python -m tests.bench.bench_build [--mebibytes 6144] [--rounds 5] [--workers 0] [--folder DIR]

The archive has ILSVRC 2012's layout: classes of 130 pictures of about 110 kB, as random bytes behind JPEG's first three
(nothing is decoded). The two take turns, out of the page cache, and each counts until its files are on the disk, as the
build does by itself: `cp` and then `sync` of its file. Pictures go through a global shuffle and three checksums
(sha256 of the tar, CRC-32 a picture, sha256 a key), on all cores, where `cp` has one to itself: on a machine with other
work the two suffer differently, so the load is printed. Counted is time on the clock, start of the processes included,
which is most of what is seen with an archive of 1 GiB or less.
"""

import argparse
import io
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from shards.build import build_shards
from shards.processes import cores
from shards.sources.imagenet import ImageNetSource

PER_CLASS, MEAN_BYTES = 130, 110_000


def main(mebibytes: int, rounds: int, workers: int, place: Path | None) -> None:
    """Make the archive, measure both ways in turn, print medians."""
    workers = workers or 2 * cores()
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        archive = make_archive(folder / "ILSVRC2012_img_train.tar", mebibytes * 2**20)
        size = archive.stat().st_size
        spent: dict[str, list[float]] = {"cp": [], "build": []}
        for turn in range(rounds + 1):  # the first warms up
            ways: list[tuple[str, Callable[[], object]]] = [
                ("cp", lambda: copied(archive, folder / "copy.tar")),
                ("build", lambda: built(archive, folder / "set", workers)),
            ]
            for way, act in ways if turn % 2 else reversed(ways):
                seconds = timed(act)
                if turn:
                    spent[way].append(seconds)
                (folder / "copy.tar").unlink(missing_ok=True)
                shutil.rmtree(folder / "set", ignore_errors=True)
                os.sync()
    for way, seconds in spent.items():
        print(f"{way:5} {size / 1e6 / median(seconds):6.0f} MB/s, {median(seconds):.2f} s (median of {rounds})")
    ratios = [cp_s / build_s for cp_s, build_s in zip(spent["cp"], spent["build"], strict=True)]
    print(f"build / cp, {workers} workers: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {cores()} cores")
    print(f"the quickest of each, which a busy machine disturbs least: {min(spent['cp']) / min(spent['build']):.2f}")


def copied(archive: Path, to: Path) -> None:
    subprocess.run(["cp", "--reflink=never", str(archive), str(to)], check=True)
    subprocess.run(["sync", str(to)], check=True)


def built(archive: Path, to: Path, workers: int) -> None:
    build_shards(ImageNetSource(str(archive)), "train", str(to), workers=workers)


def timed(act: Callable[[], object]) -> float:
    """Seconds on the clock."""
    begin_s = time.monotonic()
    act()
    return time.monotonic() - begin_s


def make_archive(path: Path, size: int) -> Path:
    """About `size` bytes."""
    generator = random.Random(0)
    pool = generator.randbytes(2**22)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as outer:
        for number in range(max(1, size // (PER_CLASS * MEAN_BYTES))):
            wnid, inner = f"n{number:08d}", io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w", format=tarfile.GNU_FORMAT) as tar:
                for i in range(PER_CLASS):
                    length = generator.randrange(40_000, 2 * MEAN_BYTES - 40_000)
                    start = generator.randrange(len(pool) - length)
                    add(tar, f"{wnid}_{i}.JPEG", b"\xff\xd8\xff" + pool[start : start + length])
            add(outer, f"{wnid}.tar", inner.getvalue())
    os.sync()
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=6144)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    main(given.mebibytes, given.rounds, given.workers, given.folder)
