"""A few pictures of a set, read and decoded in this process, to be looked at: no loader, no worker, no device."""

from collections.abc import Sized

import numpy as np
from numpy.typing import NDArray

from dist_alexnet.config import Config, Data
from dist_alexnet.data.batch import Batch
from dist_alexnet.data.colour import colour_noise
from dist_alexnet.data.loader import EvaluationSet, TrainingSet
from dist_alexnet.data.nvjpeg import Files
from dist_alexnet.data.statistics import Statistics
from shards.errors import StorageFault
from shards.index import ShardIndex
from shards.order import Order
from shards.reader import ShardReader


def spread_over(whole: Sized, count: int) -> NDArray[np.int64]:
    """Numbers of at most `count` members, evenly over the whole: a set may lie in order of class."""
    count = min(count, len(whole))
    return np.arange(count) * len(whole) // max(1, count)


def as_trained_on(index: ShardIndex, config: Config, positions: NDArray[np.int64], statistics: Statistics) -> Batch:
    """The pictures at these positions of the endless line, with the crop, mirror and noise that they have there.

    Raises StorageFault.
    """
    order = Order(index.samples_per_shard, config.run.seed, config.data.lane_count, config.data.window_shards)
    noise = colour_noise(config.data.augment.colour, statistics, len(index))
    dataset = TrainingSet(ShardReader(index), order, _on_cpu(config.data), config.run.seed, noise)
    return _batch(dataset.__getitems__(positions.tolist()))


def as_evaluated(index: ShardIndex, config: Config, ids: NDArray[np.int64]) -> Batch:
    """These samples, cut as in an evaluation. Raises StorageFault."""
    return _batch(EvaluationSet(ShardReader(index), _on_cpu(config.data)).__getitems__(ids.tolist()))


def _on_cpu(data: Data) -> Data:
    """nvJPEG's pixels are nearly the same, and need a GPU's time."""
    return data.model_copy(update={"decoder": "auto"}) if data.decoder == "nvjpeg" else data


def _batch(found: Batch | Files | StorageFault) -> Batch:
    if isinstance(found, StorageFault):
        raise found
    assert isinstance(found, Batch)
    return found
