"""A small set of shards for runs with real processes: noise with a hue a class, one picture torn."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shards.build import build_shards
from shards.sources.source import SourceSample

CLASSES = 5
TORN = 57  # sample of the training set whose picture does not decode; the validation set has none of that number


@dataclass(frozen=True)
class Noise:
    """Pictures of 72 x 72 pixels; their number is no multiple of any batch, shard or world here."""

    torn: int | None = None

    @property
    def recipe(self) -> str:
        return f"noise, torn {self.torn}"

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(f"hue-{number}" for number in range(CLASSES))

    def samples(self, split: str) -> list[SourceSample]:
        count = {"train": 131, "val": 37}[split]
        return [SourceSample(f"{split}-{i:04d}", i % CLASSES, lambda i=i: self.picture(split, i)) for i in range(count)]

    def picture(self, split: str, number: int) -> bytes:
        random = np.random.default_rng([number, len(split)])
        small = random.integers(0, 256, (9, 9, 3)).astype(np.float32) * 0.6
        small[:, :, number % 3] += 30 * (number % CLASSES)
        image = Image.fromarray(small.clip(0, 255).astype(np.uint8)).resize((72, 72), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=90)
        data = out.getvalue()
        return data[: len(data) // 3] if number == self.torn else data


def write_shards(folder: Path) -> None:
    """train and val, in shards of uneven sizes."""
    build_shards(Noise(TORN), "train", str(folder), samples_per_shard=17)
    build_shards(Noise(), "val", str(folder), samples_per_shard=10)
