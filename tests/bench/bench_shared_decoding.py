"""What data.share_decoding gains: pictures a second into two columns of one replica, with it and without.

python -m tests.bench.bench_shared_decoding [--rounds 5] [--workers 1]

Two ranks on this machine, one column each, gloo: read, decode, crop, and, with sharing, exchange; no network. The two
ways take turns in one process, so that a busy machine slows both; the best rounds are those it slowed least. What is
counted are pictures of the replica, which both columns must have. JPEGs of two sizes are made on the fly: smooth
shapes, quality 90.
"""

import argparse
import io
import itertools
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from dist_alexnet.__main__ import leave
from dist_alexnet.config import Config, batches_on
from dist_alexnet.data.loader import training_batches
from dist_alexnet.data.statistics import IMAGENET
from dist_alexnet.environment import read_world
from dist_alexnet.evaluate import share_of, whole_on
from dist_alexnet.parallel.layout import Layout
from dist_alexnet.parallel.mesh import Mesh, make_mesh
from dist_alexnet.parallel.start import distributed
from shards.build import build_shards
from shards.index import ShardIndex, read_index
from shards.sources.source import SourceSample
from tests.ranks.harness import ROOT, environment, torchrun

SIZES = ((256, 256), (500, 375))
BATCH, WARM, TIMED = 64, 4, 24  # pictures in a step; steps before the clock starts, and after


@dataclass(frozen=True)
class Smooth:
    """Pictures of smooth shapes, as noise would make JPEGs that no camera makes."""

    width: int
    height: int
    recipe = "smooth"
    classes = ("only",)

    def samples(self, split: str) -> list[SourceSample]:
        pictures = [self.picture(number) for number in range(32)]
        return [SourceSample(f"{i:05d}", 0, lambda i=i: pictures[i % 32]) for i in range(512)]

    def picture(self, number: int) -> bytes:
        small = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        out = io.BytesIO()
        shapes = Image.fromarray(small).resize((self.width, self.height), Image.Resampling.BICUBIC)
        shapes.save(out, "JPEG", quality=90)
        return out.getvalue()


def main(rounds: int, workers: int) -> None:
    """Make the shards, then measure on two ranks."""
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIZES:
            build_shards(Smooth(width, height), "train", f"{folder}/{width}x{height}", samples_per_shard=64)
        arguments = ["--folder", folder, "--rounds", str(rounds), "--workers", str(workers)]
        command = torchrun(2, "-m", "tests.bench.bench_shared_decoding", *arguments)
        subprocess.run(command, cwd=ROOT, env=environment(), check=True)


def measure(folder: Path, rounds: int, workers: int) -> None:
    """On each of two ranks: all sizes, both ways in turn; rank 0 prints medians over the rounds."""
    with distributed(read_world()) as device:
        mesh = make_mesh(Layout(columns=2), device.type)
        for width, height in SIZES:
            index = read_index(str(folder / f"{width}x{height}" / "train.index.json"))
            rates: dict[bool, list[float]] = {False: [], True: []}
            for turn in range(rounds):
                for shared in (False, True) if turn % 2 == 0 else (True, False):
                    rates[shared].append(images_per_s(index, config(shared, workers), mesh, device))
            if dist.get_rank() == 0:
                best = max(rates[False]), max(rates[True])
                ratios = [with_it / without for with_it, without in zip(rates[True], rates[False], strict=True)]
                kilobytes = sum(row.bytes for row in index.shards) / len(index) / 1e3
                print(
                    f"{width} x {height} ({kilobytes:.0f} kB each): each column decodes all {median(rates[False]):.0f} "
                    f"images/s, shared {median(rates[True]):.0f} images/s; ratio {median(ratios):.2f} "
                    f"({min(ratios):.2f} to {max(ratios):.2f}, medians of {rounds}); best rounds "
                    f"{best[0]:.0f} and {best[1]:.0f}, ratio {best[1] / best[0]:.2f}",
                    flush=True,
                )


def config(shared: bool, workers: int) -> Config:
    data = {"batch_size": BATCH, "workers": workers, "share_decoding": shared}
    return Config.model_validate({"data": data, "parallel": {"columns": 2}})


def images_per_s(index: ShardIndex, settings: Config, mesh: Mesh, device: torch.device) -> float:
    """Pictures of the replica a second, in the steady state: the loader is ahead when the clock starts and ends."""
    batches = training_batches(
        index, settings, batches_on(settings, 2), share_of(settings, mesh), range(WARM + TIMED + 8), IMAGENET, False
    )
    for batch in itertools.islice(batches, WARM):
        whole_on(batch, settings, mesh, device)
    dist.barrier()
    begin_s = time.monotonic()
    for batch in itertools.islice(batches, TIMED):
        assert len(whole_on(batch, settings, mesh, device).label_b) == BATCH
    dist.barrier()
    spent_s = time.monotonic() - begin_s
    del batches  # ends the workers
    return TIMED * BATCH / spent_s


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the ranks
    given = parser.parse_args()
    if given.folder is None:
        main(given.rounds, given.workers)
        sys.exit(0)
    measure(given.folder, given.rounds, given.workers)
    leave(0)
