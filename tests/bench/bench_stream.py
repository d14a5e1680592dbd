"""What a set of ImageNet's size costs to open, to take up again and to keep in memory.

    python -m tests.bench.bench_stream [--samples 1000000]

The index is of ImageNet's shape. To be read, its 1,024 tars are links to one of small pictures, on a local disk. The
first batch is timed fresh and at 90 % of an epoch, in turn; memory is that of a loader worker.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from dist_alexnet.config import Batches, Config
from dist_alexnet.data.batch import Batch
from dist_alexnet.data.loader import Share, training_batches
from dist_alexnet.data.statistics import IMAGENET
from shards.index import ShardIndex, read_index, write_index
from shards.indexing import index_shards
from tests.bench.synthetic import SAMPLES, SHARDS, imagenet
from tests.shards.pictures import members, write_tar

BATCH, ROUNDS = 256, 7


def main(samples: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_index(imagenet(folder), folder)
        opened = [seconds(lambda: read_index(f"{folder}/train.index.json")) for _ in range(ROUNDS)]
        print(f"index of {SAMPLES:,} samples in {SHARDS} shards opens in {median(opened):.3f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        index = linked(folder)
        fresh, late = 0, int(0.9 * len(index) / BATCH)
        times = {step: [first_batch_s(index, step) for _ in range(ROUNDS)] for step in (fresh, late)}
        for turn in range(ROUNDS):
            for step in (fresh, late) if turn % 2 else (late, fresh):
                times[step][turn] = first_batch_s(index, step)
        ratios = [b / a for a, b in zip(times[fresh], times[late], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}, median of {ROUNDS}"
        print(f"first batch at 90 % of an epoch / at its start: {median(ratios):.2f} ({spread})", flush=True)
        command = [sys.executable, "-m", "tests.bench.bench_stream", "--load", folder, "--samples", str(samples)]
        subprocess.run(command, check=True)


def seconds(act: Callable[[], object]) -> float:
    begin_s = time.perf_counter()
    act()
    return time.perf_counter() - begin_s


def linked(folder: str) -> ShardIndex:
    """An index of SHARDS tars that are one file."""
    one = index_shards(str(write_tar(Path(folder) / "one-0.tar", members(SAMPLES // SHARDS))))
    names = [f"train-{shard:06d}.tar" for shard in range(SHARDS)]
    for name in names:
        os.link(f"{folder}/one-0.tar", f"{folder}/{name}")
    rows = np.tile(np.asarray(one.samples), SHARDS)
    rows["shard"] = np.repeat(np.arange(SHARDS), len(one))
    shards = tuple(replace(one.shards[0], name=name) for name in names)
    write_index(replace(one, split="train", shards=shards, samples=rows), folder)
    return read_index(f"{folder}/train.index.json")


def config(workers: int) -> Config:
    data = {"batch_size": BATCH, "resize": 16, "image_size": 12, "workers": workers}
    return Config.model_validate({"data": data, "run": {"seed": 1}})


def batches_from(index: ShardIndex, step: int, steps: int, workers: int = 0) -> Iterator[Batch]:
    whole = Batches(data_ranks=1, micro_batch=BATCH, accumulation=1)
    positions = range(step, step + steps)
    return training_batches(index, config(workers), whole, Share(), positions, IMAGENET, pin_memory=False)


def first_batch_s(index: ShardIndex, step: int) -> float:
    return seconds(lambda: next(iter(batches_from(index, step, 1))))


def load(folder: str, samples: int) -> None:
    """Load by a worker, and print its memory as it goes."""
    index = read_index(f"{folder}/train.index.json")
    seen, early = 0, {}
    for batch in batches_from(index, 0, samples // BATCH, workers=1):
        seen += len(batch.keys)
        if seen in (40 * BATCH, samples // BATCH * BATCH):  # the last one: while the worker is still there
            (worker,) = multiprocessing.active_children()
            memory = megabytes(worker.pid)
            early = early or memory
    print(
        f"a worker after {seen:,} samples: {memory['Rss']:.0f} MB resident, {memory['Private']:.0f} MB its own; "
        f"after {40 * BATCH:,} it had {early['Rss']:.0f} MB and {early['Private']:.0f} MB"
    )


def megabytes(pid: int | None) -> dict[str, float]:
    """Memory of a process: all that is resident, and what it shares with no other."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 / 1e6 for words in lines}
    return {"Rss": sizes["Rss"], "Private": sizes["Private_Clean"] + sizes["Private_Dirty"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--load", help=argparse.SUPPRESS)  # of the process that is measured
    given = parser.parse_args()
    if given.load is None:
        main(given.samples)
    else:
        load(given.load, given.samples)
