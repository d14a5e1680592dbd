"""From positions to batches, in the order in which bytes travel: positions -> samples -> pixels -> Batch.

The torch DataLoader hands whole lists of positions to its workers and returns their batches in the order asked for, so
the number of workers changes nothing but speed.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
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
from dist_alexnet.data.decode import DecodeFault, decode_crop, decode_crops
from dist_alexnet.data.feed import Feed
from dist_alexnet.data.nvjpeg import Files, Picture, decoded_here, joined, picture_of
from dist_alexnet.data.statistics import Statistics
from dist_alexnet.data.view import Views, evaluation_views, training_views
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
    """Batches by lists of sample ids; -1 is padding. Each image has `views` rows, 1 or 10, next to each other."""

    reader: ShardReader
    data: Data
    views: int = 1

    def __getitems__(self, ids: Sequence[int]) -> Batch | Files | StorageFault:
        where = np.asarray(ids, dtype=np.int64)
        if (where >= 0).any():
            self.reader.stands_at(int(where[where >= 0].min()))
        return _loaded(self.reader, where, where, evaluation_views(len(where), self.data, self.views), self.data)


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
) -> Feed:
    """This rank's micro-batches of the given global batches, `batches.accumulation` of each. Raises StorageFault.

    statistics: of the colour noise (data.augment.colour). say: is told now and then, from another thread, how far the
    shards of the first batch have come into the cache.
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
    first = next(positions(steps), None)

    def batches_from(taken: int) -> Generator[Batch, None, None]:
        rest = Lists(partial(_after, taken, batches.accumulation, positions, steps))
        found = _batches(dataset, rest, data.workers, pin_memory)
        if taken or say is None or cache is None or first is None or local_path(index.folder) is not None:
            return found
        shards = np.unique(index.samples["shard"][order.samples(first)])
        return _first_said(found, said(cache, [index.shards[shard] for shard in shards.tolist()], say))

    return Feed(batches_from)


def _after(
    taken: int,
    accumulation: int,
    positions: Callable[[Iterable[int]], Iterator[np.ndarray]],
    steps: Iterable[int],
) -> Iterator[np.ndarray]:
    """The positions of all micro-batches behind the first `taken`."""
    return islice(positions(islice(steps, taken // accumulation, None)), taken % accumulation, None)


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


def evaluation_batches(
    index: ShardIndex, config: Config, share: Share, pin_memory: bool, views: int = 1
) -> Generator[Batch, None, None]:
    """This rank's part of the validation set, once through; equally many batches on every rank. Raises StorageFault.

    views: 1, or 10 rows of a batch for each image, whose batches are of a tenth of the images. `close` on what is
    returned ends its workers.
    """
    batch_size = -(-config.evaluate.batch_size // (views * share.parts)) * share.parts

    def ids() -> Iterator[np.ndarray]:
        for step in range(-(-len(index) // batch_size)):
            whole = evaluation_positions(step, batch_size, len(index))
            yield share.of_group(part(whole, share.data_rank, share.data_ranks))

    upcoming = partial(upcoming_in_index_order, samples_per_shard=index.samples_per_shard)
    dataset = EvaluationSet(ShardReader(index, _cache(config.data), upcoming), config.data, views)
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
        yield _decoded_by_gpu(batch) if isinstance(batch, Files) else batch


def _decoded_by_gpu(files: Files) -> Batch:
    """Its decode_s has what the host spends on it; the GPU's own time is hidden beside what it computes."""
    began_s = time.perf_counter()
    batch = decoded_here(files)
    return replace(batch, decode_s=batch.decode_s + time.perf_counter() - began_s)


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
    real, began_s = np.flatnonzero(ids >= 0), time.perf_counter()
    try:
        samples = reader.read(ids[real])
    except StorageFault as fault:
        return fault
    read_s = time.perf_counter()
    each = len(views.mirror) // len(ids)  # rows of an image
    by_gpu = data.decoder == "nvjpeg" and each == 1
    side = 0 if by_gpu else data.image_size
    pixels = np.zeros((len(ids) * each, 3, side, side), dtype=np.uint8)
    labels, weights = np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.float32)
    faults, pictures, files = [], list[Picture](), list[bytes]()
    for slot, sample in zip(real.tolist(), samples, strict=True):
        labels[slot] = sample.label
        box_of = partial(views.box, slot)
        try:
            if by_gpu:
                pictures.append(picture_of(slot, sample, box_of))
                files.append(sample.jpeg)
            elif each == 1:
                decode_crop(sample.jpeg, box_of, data.image_size, data.decoder, out=pixels[slot])
            else:
                decode_views(sample.jpeg, views, slot * each, data, out=pixels[slot * each : (slot + 1) * each])
            weights[slot] = 1
        except DecodeFault as fault:
            faults.append(Fault(int(positions[slot]), sample.key, sample.url, str(fault)))
    batch = Batch(
        pixels_b3SS=torch.from_numpy(pixels),
        mirror_b=torch.from_numpy(views.mirror),
        label_b=torch.from_numpy(labels.repeat(each)),
        weight_b=torch.from_numpy(weights.repeat(each)),
        position_b=torch.from_numpy(positions.repeat(each)),
        noise_b3=torch.from_numpy(views.noise),
        divisor_b=torch.from_numpy(views.divisor),
        keys=tuple(sample.key for sample in samples),
        faults=tuple(faults),
        fetch_s=read_s - began_s,
        decode_s=time.perf_counter() - read_s,
    )
    return Files(batch, data.image_size, joined(files), tuple(pictures)) if by_gpu else batch


def decode_views(picture: bytes, views: Views, first: int, data: Data, out: np.ndarray) -> None:
    """The rows `first` and following of `views`, all of one picture, to `out`: uint8 (rows, 3, S, S).

    Of ten the last five are mirrors of the first, and the device mirrors: their pixels are the same. Raises
    DecodeFault.
    """
    cut = 5 if len(out) == 10 else len(out)
    decode_crops(picture, [partial(views.box, first + row) for row in range(cut)], data.decoder, out[:cut])
    out[cut:] = out[: len(out) - cut]
