"""An index of ImageNet's shape without its tars."""

import numpy as np

from shards.index import SAMPLE_DTYPE, ShardIndex, ShardRow

SAMPLES, SHARDS, CLASSES = 1_281_167, 1024, 1000
MEAN_BYTES = 110_000


def imagenet(folder: str, seed: int = 0) -> ShardIndex:
    """1,024 shards of a shuffled set; pictures of 110 kB in the mean."""
    random = np.random.default_rng(seed)
    rows = np.zeros(SAMPLES, SAMPLE_DTYPE)
    sizes = np.full(SHARDS, SAMPLES // SHARDS)
    sizes[: SAMPLES % SHARDS] += 1
    rows["shard"] = np.repeat(np.arange(SHARDS), sizes)
    rows["head"], rows["length"] = 512, random.lognormal(np.log(MEAN_BYTES) - 0.125, 0.5, SAMPLES).astype(np.uint32)
    rows["label"] = random.permutation(np.arange(SAMPLES) * CLASSES // SAMPLES)
    ends = np.cumsum(sizes)
    shards = []
    for shard, (size, end) in enumerate(zip(sizes.tolist(), ends.tolist(), strict=True)):
        own = rows[end - size : end]
        taken = 1536 + (own["length"].astype(np.int64) + 511) // 512 * 512
        own["offset"] = np.cumsum(taken) - taken + 1536
        shards.append(ShardRow(f"train-{shard:06d}.tar", int(taken.sum()) + 1024, size, f"{shard:064x}", shard))
    return ShardIndex(folder, "train", None, CLASSES, tuple(shards), rows)
