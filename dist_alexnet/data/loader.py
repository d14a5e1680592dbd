"""From positions to batches, in the order in which bytes travel: positions -> samples -> pixels -> Batch.

The torch DataLoader hands whole lists of positions to its workers and returns their batches in the order asked for, so
the number of workers changes nothing but speed.
"""

import multiprocessing
import os
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dist_alexnet.config import Batches, Config, Data
from dist_alexnet.data.batch import Batch, Fault
from dist_alexnet.data.decode import DecodeFault, decode_crop
from dist_alexnet.data.view import Views, centre_views, training_views
from shards.errors import StorageFault
from shards.index import ShardIndex
from shards.order import Order, batch_positions, evaluation_positions, part
from shards.reader import RawSample, ShardReader


@dataclass(frozen=True)
class Share:
    """Which part of every global batch a rank loads. Columns of one replica have the same share."""

    data_rank: int = 0
    data_ranks: int = 1
    replica: int = 0
    replicas: int = 1


@dataclass
class TrainingSet(Dataset[Batch]):
    """Batches by lists of positions on the endless line."""

    reader: ShardReader
    order: Order
    data: Data
    seed: int

    def __getitems__(self, positions: Sequence[int]) -> Batch | StorageFault:
        where = np.asarray(positions, dtype=np.int64)
        views = training_views(where, self.seed, self.data)
        return _loaded(self.reader, self.order.samples(where), where, views, self.data)


@dataclass
class EvaluationSet(Dataset[Batch]):
    """Batches by lists of sample ids; -1 is padding."""

    reader: ShardReader
    data: Data

    def __getitems__(self, ids: Sequence[int]) -> Batch | StorageFault:
        where = np.asarray(ids, dtype=np.int64)
        return _loaded(self.reader, where, where, centre_views(len(where), self.data), self.data)


@dataclass
class Lists(Sampler[list[int]]):
    """Lists of integers that can be walked again: one list is one batch."""

    make: Callable[[], Iterator[np.ndarray]] = field(repr=False)

    def __iter__(self) -> Iterator[list[int]]:
        return (numbers.tolist() for numbers in self.make())


def training_batches(
    index: ShardIndex, config: Config, batches: Batches, share: Share, steps: range, pin_memory: bool
) -> Iterator[Batch]:
    """This rank's micro-batches of the given steps, `batches.accumulation` a step. Raises StorageFault."""
    data = config.data
    order = Order(index.samples_per_shard, config.run.seed, data.lane_count, data.window_shards)

    def positions() -> Iterator[np.ndarray]:
        for step in steps:
            whole = batch_positions(step, data.batch_size, data.lane_count)
            own = part(whole, share.data_rank, share.data_ranks)
            for micro in range(batches.accumulation):
                yield part(part(own, micro, batches.accumulation), share.replica, share.replicas)

    dataset = TrainingSet(ShardReader(index), order, data, config.run.seed)
    return _batches(dataset, Lists(positions), data.workers, pin_memory)


def evaluation_batches(index: ShardIndex, config: Config, share: Share, pin_memory: bool) -> Iterator[Batch]:
    """This rank's part of the validation set, once through; equally many batches on every rank. Raises StorageFault."""
    parts = share.data_ranks * share.replicas
    batch_size = -(-config.evaluate.batch_size // parts) * parts

    def ids() -> Iterator[np.ndarray]:
        for step in range(-(-len(index) // batch_size)):
            whole = evaluation_positions(step, batch_size, len(index))
            yield part(part(whole, share.data_rank, share.data_ranks), share.replica, share.replicas)

    dataset = EvaluationSet(ShardReader(index), config.data)
    return _batches(dataset, Lists(ids), config.data.workers, pin_memory)


def _batches(dataset: Dataset[Batch], lists: Lists, workers: int, pin_memory: bool) -> Iterator[Batch]:
    context = None
    if workers:
        # Workers come from a clean server process: a fork of this one would carry its threads and its GPU along.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["dist_alexnet.data.loader"])
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        batch_sampler=lists,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
        multiprocessing_context=context,
        worker_init_fn=partial(_start_worker, os.getpid()),
    )
    for batch in loader:
        if isinstance(batch, StorageFault):
            raise batch
        yield batch


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(rank_pid: int, worker: int) -> None:
    """One thread a worker; and end with the rank, even when that is killed.

    torch's workers watch their parent, which is the server process here; and the server lives as long as its workers.
    """
    torch.set_num_threads(1)
    if hasattr(os, "pidfd_open"):  # Linux
        threading.Thread(target=_end_with, args=(rank_pid,), daemon=True).start()


def _end_with(pid: int) -> None:
    with suppress(ProcessLookupError):
        select.select([os.pidfd_open(pid)], [], [])  # readable once that process is gone
    os._exit(1)


def _loaded(
    reader: ShardReader, ids: np.ndarray, positions: np.ndarray, views: Views, data: Data
) -> Batch | StorageFault:
    """Read and decode. A storage fault is handed over, so that the rank itself can say it in one sentence."""
    real = np.flatnonzero(ids >= 0)
    try:
        samples = reader.read(ids[real])
    except StorageFault as fault:
        return fault
    pixels = np.zeros((len(ids), 3, data.image_size, data.image_size), dtype=np.uint8)
    labels, weights = np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.float32)
    faults = []
    for slot, sample in zip(real, samples, strict=True):
        labels[slot] = sample.label
        try:
            pixels[slot] = _crop(sample, views, int(slot), data)
            weights[slot] = 1
        except DecodeFault as fault:
            try:
                reader.check_bytes(sample.sample_id)
            except StorageFault as rotten:
                return rotten
            faults.append(Fault(int(positions[slot]), sample.key, sample.url, str(fault)))
    return Batch(
        pixels_b3SS=torch.from_numpy(pixels),
        mirror_b=torch.from_numpy(views.mirror),
        label_b=torch.from_numpy(labels),
        weight_b=torch.from_numpy(weights),
        position_b=torch.from_numpy(positions),
        keys=tuple(sample.key for sample in samples),
        faults=tuple(faults),
    )


def _crop(sample: RawSample, views: Views, slot: int, data: Data) -> np.ndarray:
    return decode_crop(sample.jpeg, int(views.left[slot]), int(views.top[slot]), data.resize, data.image_size)
