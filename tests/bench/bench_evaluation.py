"""What ten views cost the loader, and what an evaluation amid training costs in memory.

python -m tests.bench.bench_evaluation [--workers 2]

Pictures are noise of 500 x 375. Memory: of the rank, and of its loader processes (PSS) with the batches that they hold
in shared memory; `kept` is what it would be if training's loader processes stayed.
"""

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from dist_alexnet.config import Config, batches_on
from dist_alexnet.data.decode import decode_crop
from dist_alexnet.data.feed import Feed
from dist_alexnet.data.loader import Share, decode_views, evaluation_batches, training_batches
from dist_alexnet.data.statistics import IMAGENET
from dist_alexnet.data.view import ten_views
from shards.build import build_shards
from shards.index import ShardIndex, read_index
from shards.sources.source import SourceSample
from tests.data.test_decode_fast import jpeg, scene

MB = 2**20


class Pictures:
    recipe, classes = "noise", ("a", "b")

    def samples(self, split: str) -> list[SourceSample]:
        pictures = [jpeg(scene(500, 375, seed)) for seed in range(16)]
        return [SourceSample(f"{i:05d}", i % 2, partial(bytes, pictures[i % 16])) for i in range(2048)]


def ten_views_ms() -> None:
    """CPU milliseconds a picture: decoded once, and once for each crop."""
    data, pictures = Config().data, [jpeg(scene(500, 375, seed)) for seed in range(12)]
    views, out = ten_views(1, data), np.zeros((10, 3, data.image_size, data.image_size), dtype=np.uint8)

    def once(picture: bytes) -> None:
        decode_views(picture, views, 0, data, out)

    def each(picture: bytes) -> None:
        for row in range(5):
            decode_crop(picture, partial(views.box, row), data.image_size, "auto", out[row])

    def centre(picture: bytes) -> None:
        decode_crop(picture, partial(views.box, 4), data.image_size, "auto", out[4])

    for name, decode in {"ten views, decoded once": once, "a decoding a crop": each, "the centre": centre}.items():
        spent_s = []
        for _ in range(5):
            began_s = time.process_time()
            for picture in pictures:
                decode(picture)
            spent_s.append(time.process_time() - began_s)
        print(f"{name:24s} {min(spent_s) / len(pictures) * 1e3:.2f} ms of CPU a picture")


def family() -> list[int]:
    """This process and all below it."""
    below: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (folder / "stat").exists():
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            below.setdefault(parent, []).append(int(folder.name))
    found, left = [], [os.getpid()]
    while left:
        found.append(left.pop())
        left += below.get(found[-1], [])
    return found


def memory_mb() -> tuple[float, float, float]:
    """(PSS of this process, PSS of those below it, files in shared memory that one of them has open)."""
    pss, files = {}, {}
    for pid in family():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        pss[pid] = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if link.is_symlink() and os.readlink(link).startswith("/dev/shm"):
                file = link.stat()
                files[file.st_ino] = file.st_blocks * 512
    own = pss.pop(os.getpid())
    return own / MB, sum(pss.values()) / MB, sum(files.values()) / MB


def told(name: str) -> None:
    time.sleep(8)  # until what is fetched ahead is there
    own, others, shared = memory_mb()
    print(f"{name:32s} rank {own:5.0f}  loader processes {others:5.0f}  batches in shared memory {shared:5.0f} MB")


def evaluation_memory(index: ShardIndex, workers: int, rest: bool) -> None:
    config = Config.model_validate({"data": {"batch_size": 128, "workers": workers}})
    feed: Feed = training_batches(index, config, batches_on(config, 1), Share(), range(12), IMAGENET, False)
    next(feed)
    told("training")
    if rest:
        feed.rest()
    batches = evaluation_batches(index, config, Share(), False)
    next(batches)
    told("in an evaluation" + ("" if rest else ", kept"))
    batches.close()
    began_s = time.monotonic()
    next(feed)
    print(f"first batch after it             {time.monotonic() - began_s:.2f} s")
    feed.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    workers = parser.parse_args().workers
    print(f"load {os.getloadavg()[0]:.1f}")
    ten_views_ms()
    with tempfile.TemporaryDirectory() as folder:
        build_shards(Pictures(), "train", folder)
        index = read_index(f"{folder}/train.index.json")
        for rest in (False, True):
            evaluation_memory(index, workers, rest)


if __name__ == "__main__":
    main()
