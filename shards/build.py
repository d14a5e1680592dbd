"""Making shard sets out of a source of pictures."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards import storage
from shards.build_lock import alone
from shards.errors import InputError
from shards.hashing import hash64
from shards.index import ShardIndex, index_url, key_digest, read_index, write_index
from shards.journal import Journal, open_journal
from shards.names import check_split
from shards.processes import cores, each_done
from shards.sources.source import Source, SourceSample, class_info_of
from shards.storage import shown
from shards.tar_writer import write_tar
from shards.tars import TarScan, scan_tar

Progress = Callable[[int, int], None]
ROWS_AT_A_TIME = 1000  # of JSON


def build_shards(
    source: Source,
    split: str,
    to_url: str,
    *,
    samples_per_shard: int = 1000,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> ShardIndex:
    """Shuffle the source's split by `seed` and write it as tars of `samples_per_shard` samples and an index.

    Same source, seed and size, same bytes in every file, whatever `workers` (processes, each of which writes whole
    tars; 0: two a core, as half of them wait for the disk). A tar appears only whole, the index last. Where the folder
    already holds this very build (by the index's fingerprint of source, keys, labels, file sizes, seed and shard size,
    and by the sizes of its tars) it is returned as it is. InputError, and nothing overwritten, where the folder holds
    another build of that split, or a tar of that name with other bytes, and where another process is building it now. A
    build that was killed goes on when called again: the tars it had finished are checked and kept. `progress(done,
    total)` counts samples.
    """
    check_split(split)
    storage.check_writable(to_url)
    if samples_per_shard < 1:
        raise InputError(f"samples_per_shard is {samples_per_shard}: expected 1 or more")
    if workers < 0:
        raise InputError(f"workers is {workers}: expected 1 or more, or 0 for two a core")
    samples = source.samples(split)
    _check_samples(samples, source, split)
    built_from = _fingerprint(source, samples, samples_per_shard, seed)
    existing = _existing_build(to_url, split, built_from)
    if existing is not None:
        open_journal(to_url, split, built_from).end()  # it may have been killed just before that
        return existing
    shards = -(-len(samples) // samples_per_shard)
    with alone(to_url, split):
        journal = open_journal(to_url, split, built_from)
        tasks = _tasks(samples, to_url, split, samples_per_shard, seed, journal.finished)
        scans = _write_all(tasks, min(workers or 2 * cores(), shards), journal, progress, len(samples))
        write_index(_index_of(scans, to_url, split, source, built_from), to_url)
        journal.end()
    return read_index(index_url(to_url, split))


@dataclass(frozen=True)
class ShardTask:
    """One tar to be written; `finished` is the sha256 of the one that an earlier start finished."""

    folder: str
    name: str
    shard: int
    samples: list[SourceSample]
    finished: str | None


def write_shard(task: ShardTask) -> TarScan:
    """Write the task's tar, or check the one that was finished before. InputError where another is there."""
    url = storage.join(task.folder, task.name)
    if task.finished is None or not storage.exists(url):
        return write_tar(task.folder, task.name, task.shard, task.samples)
    changed = InputError(f"{shown(url)} is no longer what an earlier start wrote: take it away, then build again")
    try:
        with storage.open_read(url) as stream:
            scan = scan_tar(stream, task.name, task.shard, shown(url))
    except InputError as exc:
        raise changed from exc
    expected = [(sample.key, sample.label) for sample in task.samples]
    labels = scan.samples["label"].tolist()
    if scan.row.sha256 != task.finished or list(zip(scan.keys, labels, strict=True)) != expected:
        raise changed
    return scan


def _tasks(
    samples: Sequence[SourceSample],
    folder: str,
    split: str,
    samples_per_shard: int,
    seed: int,
    finished: Mapping[str, str],
) -> Iterator[ShardTask]:
    order = np.argsort(hash64(seed, "shards/build", np.arange(len(samples))), kind="stable")
    for shard, start in enumerate(range(0, len(samples), samples_per_shard)):
        name = f"{split}-{shard:06d}.tar"
        chosen = [samples[i] for i in order[start : start + samples_per_shard].tolist()]
        yield ShardTask(folder, name, shard, chosen, finished.get(name))


def _write_all(
    tasks: Iterable[ShardTask], workers: int, journal: Journal, progress: Progress | None, total: int
) -> list[TarScan]:
    scans, done = [], 0
    for scan in each_done(write_shard, tasks, workers):
        scans.append(scan)
        journal.add(scan.row.name, scan.row.sha256)
        done += scan.row.samples
        if progress is not None:
            progress(done, total)
    return sorted(scans, key=lambda scan: int(scan.samples["shard"][0]))


def _check_samples(samples: Sequence[SourceSample], source: Source, split: str) -> None:
    if not len(samples):
        raise InputError(f"the source has no samples for split {split!r}: nothing to build")
    classes = len(source.classes)
    digests = np.zeros(len(samples), np.uint64)
    for i, sample in enumerate(samples):
        if "." in sample.key or not all(sample.key.split("/")):
            raise InputError(
                f"the source's key {sample.key!r} has a dot, or nothing before or behind a slash: rename that picture"
            )
        if not 0 <= sample.label < classes:
            raise InputError(f"{sample.key!r} has class {sample.label}: expected 0..{classes - 1}")
        digests[i] = key_digest(sample.key)
    # A set of a million keys would take hundreds of megabytes; their digests take eight.
    order = np.argsort(digests, kind="stable")
    for at in np.flatnonzero(digests[order[1:]] == digests[order[:-1]]).tolist():
        first, second = samples[int(order[at])], samples[int(order[at + 1])]
        if first.key == second.key:
            raise InputError(f"the source's key {first.key!r} comes twice: rename one of the two pictures")


def _fingerprint(source: Source, samples: Sequence[SourceSample], samples_per_shard: int, seed: int) -> str:
    """sha256 (hex) over all that decides what is written, as JSON that is never whole in memory."""
    info = class_info_of(source)
    known: list[Any] = [] if info is None else [[dict(one) for one in info]]
    head = json.dumps([source.recipe, source.classes, *known, samples_per_shard, seed])
    digest = hashlib.sha256(head.removesuffix("]").encode() + b", [")
    for start in range(0, len(samples), ROWS_AT_A_TIME):
        some = samples[start : start + ROWS_AT_A_TIME]
        rows = json.dumps([[sample.key, sample.label, sample.size_bytes] for sample in some])
        digest.update((", " if start else "").encode() + rows[1:-1].encode())
    digest.update(b"]]")
    return digest.hexdigest()


def _existing_build(to_url: str, split: str, built_from: str) -> ShardIndex | None:
    """The index in the folder where it is this very build; None where there is none; InputError for another."""
    url = index_url(to_url, split)
    if not storage.exists(url):
        return None
    index = read_index(url)
    if index.built_from != built_from:
        raise InputError(
            f"{shown(to_url)} already holds a split {split} built from something else (another source, seed, size of "
            "shards or of pictures): name another folder, or take that one away first"
        )
    for shard, row in enumerate(index.shards):
        tar = index.shard_url(shard)
        if not storage.exists(tar) or storage.size_bytes(tar) != row.bytes:
            raise InputError(
                f"{shown(tar)} is not the {row.bytes} bytes that its index says: take {shown(url)} and that tar away, "
                "then build again"
            )
    return index


def _index_of(scans: Sequence[TarScan], folder: str, split: str, source: Source, built_from: str) -> ShardIndex:
    return ShardIndex(
        folder=folder,
        split=split,
        classes=source.classes,
        num_classes=len(source.classes),
        shards=tuple(scan.row for scan in scans),
        samples=np.concatenate([scan.samples for scan in scans]),
        built_from=built_from,
        class_info=class_info_of(source),
    )
