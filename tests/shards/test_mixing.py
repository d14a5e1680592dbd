import numpy as np
import pytest

from shards.errors import InputError
from shards.index import SAMPLE_DTYPE, ShardIndex, ShardRow
from shards.mixing import mixing, reading
from shards.order import Order


def synthetic(shards: int, samples: int, num_classes: int, sort: bool = False) -> ShardIndex:
    """An index without tars; `sort`: each shard holds few classes, as a set that nobody shuffled does."""
    rows = np.zeros(shards * samples, SAMPLE_DTYPE)
    number = np.arange(len(rows))
    rows["shard"], rows["head"], rows["length"] = number // samples, 512, 1024
    rows["offset"] = (number % samples) * 2560 + 1536
    labels = number * num_classes // len(rows)
    rows["label"] = labels if sort else np.random.default_rng(0).permutation(labels)
    size = samples * 2560 + 1024
    table = tuple(ShardRow(f"train-{i:06d}.tar", size, samples, f"{i:064x}", i) for i in range(shards))
    return ShardIndex("s3://bucket/set", "train", None, num_classes, table, rows)


@pytest.mark.parametrize("nodes", [1, 2, 4, 8])
def test_a_node_reads_its_share_and_the_borders_of_its_lanes(nodes: int) -> None:
    index = synthetic(128, 20, 10)
    order = Order(index.samples_per_shard, 0, 8, 2)
    found = reading(index, order, 64, nodes)
    whole = sum(row.bytes for row in index.shards)
    borders = 8 // nodes + 1
    assert 128 / nodes <= found.shards <= 128 / nodes + borders
    assert found.cached_bytes == found.shards * index.shards[0].bytes
    assert found.cached_bytes <= whole / nodes + borders * index.shards[0].bytes
    assert found.ranged_bytes == pytest.approx(len(index) / nodes * 1536, rel=0.03)
    assert 8 / nodes * 2 <= found.window_shards <= 8 / nodes * 3


def test_lanes_and_windows_mix_a_shuffled_set_like_a_permutation() -> None:
    index = synthetic(128, 40, 50)
    order = Order(index.samples_per_shard, 0, 16, 4)
    found = mixing(index, order, 64)
    for ours, permutation in (found.classes, found.repeat):
        assert ours == pytest.approx(permutation, rel=0.1)
    assert found.distance[0] == pytest.approx(found.distance[1], rel=0.2)  # some neighbours come from one shard
    assert found.together[0] < 4 * found.together[1]


def test_too_few_lanes_without_a_window_mix_worse_and_it_shows() -> None:
    """Of a set whose shards hold one class each: one lane in index order gives batches of one class or two."""
    index = synthetic(64, 40, 64, sort=True)
    worst = mixing(index, Order(index.samples_per_shard, 0, 1, 0), 32)
    assert worst.classes[0] < 3 < 20 < worst.classes[1]
    assert worst.together[0] > 0.5
    better = mixing(index, Order(index.samples_per_shard, 0, 32, 2), 32)
    assert better.classes[0] > 0.8 * better.classes[1]


def test_what_cannot_be_measured_is_refused() -> None:
    index = synthetic(4, 5, 2)
    order = Order(index.samples_per_shard, 0, 2, 1)
    with pytest.raises(InputError, match="fewer than a batch of 64"):
        mixing(index, order, 64)
    with pytest.raises(InputError, match="does not divide over 3 nodes"):
        reading(index, order, 4, 3)
