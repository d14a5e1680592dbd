"""From positions to batches, in the order in which bytes travel: positions -> samples -> pixels -> Batch.

The torch DataLoader hands whole lists of positions to its workers and returns their batches in the order asked for, so
the number of workers changes nothing but speed.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dist_alexnet.config import Batches, Config, Data
from dist_alexnet.data.batch import Batch, Fault
from dist_alexnet.data.cold_start import Say, said
from dist_alexnet.data.colour import ColourNoise, colour_noise
from dist_alexnet.data.decode import DecodeFault, decode_crop
from dist_alexnet.data.nvjpeg import Files, Picture, decoded_here, joined, picture_of
from dist_alexnet.data.statistics import Statistics
from dist_alexnet.data.view import Views, centre_views, training_views
from shards.cache import ShardCache
from shards.errors import StorageFault
from shards.index import ShardIndex
from shards.order import Order, batch_positions, evaluation_positions, part, upcoming_in_index_order
from shards.processes import end_with
from shards.reader import ShardReader
from shards.storage import local_path, shown

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}


@dataclass(frozen=True)
class Share:
    """Which part of every global batch a rank loads.

    Columns of one replica load the same pictures, unless they share the decoding: then they are told apart here.
    """

    data_rank: int = 0
    data_ranks: int = 1
    replica: int = 0
    replicas: int = 1
    column: int = 0
    columns: int = 1

    @property
    def parts(self) -> int:
        """How many ranks load different pictures."""
        return self.data_ranks * self.replicas * self.columns

    def of_group(self, group: np.ndarray) -> np.ndarray:
        """This rank's part of what a model group sees in one forward (dim 0)."""
        return part(part(group, self.replica, self.replicas), self.column, self.columns)


@dataclass
class TrainingSet(Dataset[Batch]):
    """Batches by lists of positions on the endless line."""

    reader: ShardReader
    order: Order
    data: Data
    seed: int
    noise: ColourNoise | None

    def __getitems__(self, positions: Sequence[int]) -> Batch | Files | StorageFault:
        where = np.asarray(positions, dtype=np.int64)
        self.reader.stands_at(int(where.min()))
        views = training_views(where, self.seed, self.data, self.noise)
        return _loaded(self.reader, self.order.samples(where), where, views, self.data)


@dataclass
class EvaluationSet(Dataset[Batch]):
    """Batches by lists of sample ids; -1 is padding."""

    reader: ShardReader
    data: Data

    def __getitems__(self, ids: Sequence[int]) -> Batch | Files | StorageFault:
        where = np.asarray(ids, dtype=np.int64)
        if (where >= 0).any():
            self.reader.stands_at(int(where[where >= 0].min()))
        return _loaded(self.reader, where, where, centre_views(len(where), self.data), self.data)


@dataclass
class Lists(Sampler[list[int]]):
    """Lists of integers that can be walked again: one list is one batch."""

    make: Callable[[], Iterator[np.ndarray]] = field(repr=False)

    def __iter__(self) -> Iterator[list[int]]:
        return (numbers.tolist() for numbers in self.make())


def training_batches(
    index: ShardIndex,
    config: Config,
    batches: Batches,
    share: Share,
    steps: Iterable[int],
    statistics: Statistics,
    pin_memory: bool,
    say: Say | None = None,
) -> Generator[Batch, None, None]:
    """This rank's micro-batches of the given global batches, `batches.accumulation` of each. Raises StorageFault.

    statistics: of the colour noise (data.augment.colour). say: is told now and then, from another thread, how far the
    shards of the first batch have come into the cache. `close` on what is returned ends its workers.
    """
    data = config.data
    order = Order(index.samples_per_shard, config.run.seed, data.lane_count, data.window_shards)
    positions = partial(_positions, data, batches, share)
    noise = colour_noise(data.augment.colour, statistics, len(index))
    # Every step reads the same lanes, and these are all that this rank's node has to fetch.
    lanes = np.unique(np.concatenate(list(positions([0]))) % data.lane_count).tolist()
    cache = _cache(data)
    reader = ShardReader(index, cache, partial(order.upcoming, lanes=lanes))
    dataset = TrainingSet(reader, order, data, config.run.seed, noise)
    found = _batches(dataset, Lists(partial(positions, steps)), data.workers, pin_memory)
    first = next(positions(steps), None)
    if say is None or cache is None or first is None or local_path(index.folder) is not None:
        return found
    shards = np.unique(index.samples["shard"][order.samples(first)])
    return _first_said(found, said(cache, [index.shards[shard] for shard in shards.tolist()], say))


def shards_read(index: ShardIndex, config: Config, batches: Batches, share: Share, step: int) -> list[str]:
    """The shards that this rank reads for one global batch, as their URLs may stand in a log."""
    data = config.data
    order = Order(index.samples_per_shard, config.run.seed, data.lane_count, data.window_shards)
    ids = order.samples(np.concatenate(list(_positions(data, batches, share, [step]))))
    return [shown(index.shard_url(shard)) for shard in np.unique(index.samples["shard"][ids]).tolist()]


def _positions(data: Data, batches: Batches, share: Share, steps: Iterable[int]) -> Iterator[np.ndarray]:
    """On the endless line, of each micro-batch."""
    for step in steps:
        whole = batch_positions(int(step), data.batch_size, data.lane_count)
        own = part(whole, share.data_rank, share.data_ranks)
        for micro in range(batches.accumulation):
            yield share.of_group(part(own, micro, batches.accumulation))


def evaluation_batches(index: ShardIndex, config: Config, share: Share, pin_memory: bool) -> Iterator[Batch]:
    """This rank's part of the validation set, once through; equally many batches on every rank. Raises StorageFault."""
    batch_size = -(-config.evaluate.batch_size // share.parts) * share.parts

    def ids() -> Iterator[np.ndarray]:
        for step in range(-(-len(index) // batch_size)):
            whole = evaluation_positions(step, batch_size, len(index))
            yield share.of_group(part(whole, share.data_rank, share.data_ranks))

    upcoming = partial(upcoming_in_index_order, samples_per_shard=index.samples_per_shard)
    dataset = EvaluationSet(ShardReader(index, _cache(config.data), upcoming), config.data)
    return _batches(dataset, Lists(ids), config.data.workers, pin_memory)


def _first_said(
    batches: Generator[Batch, None, None], said: AbstractContextManager[None]
) -> Generator[Batch, None, None]:
    """The same batches, the first of them inside `said`."""
    with closing(batches):
        with said:
            first = next(batches)
        yield first
        yield from batches


def _cache(data: Data) -> ShardCache | None:
    """The node's cache. Raises InputError where its folder cannot be made or written."""
    return None if data.cache.dir is None else ShardCache(Path(data.cache.dir).expanduser(), data.cache.max_bytes)


def _batches(dataset: Dataset[Batch], lists: Lists, workers: int, pin_memory: bool) -> Generator[Batch, None, None]:
    context = None
    if workers:
        # Workers come from a clean server process: a fork of this one would carry its threads and its GPU along.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["dist_alexnet.data.loader"])
        with _blocked(STOP_SIGNALS):  # for the server and all that it starts
            forkserver.ensure_running()
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
        yield decoded_here(batch) if isinstance(batch, Files) else batch


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(rank_pid: int, worker: int) -> None:
    """One thread a worker; and end with the rank, even when that is killed.

    torch's workers watch their parent, which is the server process here; and the server lives as long as its workers.
    Signals that ask a run to stop reach all processes of a job, but it is the rank that answers them, and it needs its
    workers until then; torch ends them by SIGTERM, too, which therefore counts the second time.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    end_with(rank_pid)


@contextmanager
def _blocked(signals: set[signal.Signals]) -> Iterator[None]:
    """Processes started inside never get these; this one gets them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _loaded(
    reader: ShardReader, ids: np.ndarray, positions: np.ndarray, views: Views, data: Data
) -> Batch | Files | StorageFault:
    """Read and decode, unless the GPU does. A storage fault is handed over: the rank itself says it in one sentence."""
    real = np.flatnonzero(ids >= 0)
    try:
        samples = reader.read(ids[real])
    except StorageFault as fault:
        return fault
    by_gpu = data.decoder == "nvjpeg"
    side = 0 if by_gpu else data.image_size
    pixels = np.zeros((len(ids), 3, side, side), dtype=np.uint8)
    labels, weights = np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.float32)
    faults, pictures, files = [], list[Picture](), list[bytes]()
    for slot, sample in zip(real.tolist(), samples, strict=True):
        labels[slot] = sample.label
        box_of = partial(views.box, slot)
        try:
            if by_gpu:
                pictures.append(picture_of(slot, sample, box_of))
                files.append(sample.jpeg)
            else:
                decode_crop(sample.jpeg, box_of, data.image_size, data.decoder, out=pixels[slot])
            weights[slot] = 1
        except DecodeFault as fault:
            faults.append(Fault(int(positions[slot]), sample.key, sample.url, str(fault)))
    batch = Batch(
        pixels_b3SS=torch.from_numpy(pixels),
        mirror_b=torch.from_numpy(views.mirror),
        label_b=torch.from_numpy(labels),
        weight_b=torch.from_numpy(weights),
        position_b=torch.from_numpy(positions),
        noise_b3=torch.from_numpy(views.noise),
        divisor_b=torch.from_numpy(views.divisor),
        keys=tuple(sample.key for sample in samples),
        faults=tuple(faults),
    )
    return Files(batch, data.image_size, joined(files), tuple(pictures)) if by_gpu else batch
