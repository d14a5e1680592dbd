"""The order of samples over grids of worlds, without a process."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.order import Order, auto_lanes, batch_positions, part

GOLDEN_ORDER = [11, 1, 3, 20, 10, 2, 5, 19, 12, 16, 7, 18, 14, 15, 6, 17, 9, 0, 4, 8, 13]


def make(sizes: list[int], lanes: int = 8, window_shards: int = 2, seed: int = 7) -> Order:
    return Order(np.array(sizes, dtype=np.int64), seed, lanes, window_shards)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_each_sample_stands_once_in_each_epoch(sizes: list[int], log_lanes: int, window: int, epoch: int) -> None:
    order = make(sizes, lanes=2**log_lanes, window_shards=window)
    total = order.epoch_samples
    ids = order.samples(np.arange(epoch * total, (epoch + 1) * total))
    assert sorted(ids) == list(range(total))


def test_an_epoch_is_another_order_and_a_seed_too() -> None:
    order = make([50] * 8)
    total = order.epoch_samples
    first, second = order.samples(np.arange(total)), order.samples(np.arange(total, 2 * total))
    assert (first != second).mean() > 0.9
    assert (make([50] * 8, seed=8).samples(np.arange(total)) != first).mean() > 0.9


def test_golden_order() -> None:
    """Frozen: a change here is another run for everybody who has one going."""
    order = make([5, 3, 9, 4], lanes=4, window_shards=1, seed=3)
    assert order.samples(np.arange(21, 42)).tolist() == GOLDEN_ORDER


@pytest.mark.parametrize("data", [1, 2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("replicas", [1, 2])
def test_every_layout_covers_the_same_batch(data: int, accumulation: int, replicas: int) -> None:
    batch_size = 96
    whole = batch_positions(5, batch_size, auto_lanes(batch_size))
    assert sorted(whole) == list(range(480, 576))
    runs = [
        part(part(part(whole, d, data), a, accumulation), r, replicas)
        for d in range(data)
        for a in range(accumulation)
        for r in range(replicas)
    ]
    assert {len(run) for run in runs} == {batch_size // (data * accumulation * replicas)}
    assert np.concatenate(runs).tolist() == whole.tolist()


@pytest.mark.parametrize("nodes", [2, 3, 5, 8])
def test_a_node_opens_its_share_of_the_shards(nodes: int) -> None:
    """8 simulated nodes: each opens at most 1/8 of the shards, plus the borders of its lanes."""
    shards, batch_size = 512, 960
    lanes = auto_lanes(batch_size)
    order = make([100] * shards, lanes=lanes, window_shards=2)
    steps = order.epoch_samples // batch_size
    lanes_of_node = -(-lanes // nodes) + 1 if lanes % nodes else lanes // nodes
    for node in range(nodes):
        positions = np.concatenate([part(batch_positions(n, batch_size, lanes), node, nodes) for n in range(steps)])
        opened = np.unique(order.samples(positions) // 100)
        assert len(opened) <= shards / nodes + 2 * lanes_of_node
        assert len(opened) < shards / nodes * 1.5


def test_positions_may_come_in_any_order_and_span_epochs() -> None:
    order = make([5, 3, 9, 4], lanes=4)
    line = order.samples(np.arange(100))
    mixed = np.random.default_rng(0).permutation(100)
    assert order.samples(mixed).tolist() == line[mixed].tolist()


@pytest.mark.parametrize(("batch_size", "lanes"), [(128, 64), (12, 4), (96, 32), (7, 1), (1, 1), (32768, 64)])
def test_auto_lanes(batch_size: int, lanes: int) -> None:
    assert auto_lanes(batch_size) == lanes


def test_batches_mix_the_shards() -> None:
    """Shards that each hold one class still give mixed batches: lanes start in different shards."""
    order = make([64] * 64, lanes=64, window_shards=4)
    shards = order.samples(np.arange(128)) // 64
    assert len(np.unique(shards)) > 24
