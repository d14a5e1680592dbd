"""Whether tars are what their index says, whether their pictures decode, and finding a sample by its key."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards import storage
from shards.errors import DistAlexnetError, InputError
from shards.index import SAMPLE_DTYPE, ShardIndex, ShardRow
from shards.processes import each_done
from shards.reader import ShardReader
from shards.storage import shown
from shards.tars import scan_tar

Undecodable = Callable[[bytes], str | None]  # a picture -> why it does not decode, None where it does
REMOTE_REQUESTS = 32  # at a time, where only keys are read


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a shard: with its sample `key`, or with the whole of it."""

    shard: str
    key: str | None
    what: str


def verify(
    index: ShardIndex,
    undecodable: Undecodable | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Read every shard once, and compare it with the index: bytes, structure, offsets, labels, and each picture.

    undecodable: travels to `workers` processes. progress(done, total) counts shards. The findings come shard by shard.
    """
    ends = np.cumsum(index.samples_per_shard)
    tasks = (
        _Task(index.shard_url(shard), shard, row, index.samples[end - row.samples : end], undecodable)
        for shard, (row, end) in enumerate(zip(index.shards, ends.tolist(), strict=True))
    )
    found: dict[int, list[Finding]] = {}
    for shard, findings in each_done(_verify_shard, tasks, workers):
        found[shard] = findings
        if progress is not None:
            progress(len(found), len(index.shards))
    return [finding for shard in sorted(found) for finding in found[shard]]


@dataclass(frozen=True)
class _Task:
    """One shard, and its rows in the index."""

    url: str
    shard: int
    row: ShardRow
    samples: NDArray[np.void]
    undecodable: Undecodable | None


def _verify_shard(task: _Task) -> tuple[int, list[Finding]]:
    findings: list[Finding] = []

    def see(key: str, picture: bytes) -> None:
        why = task.undecodable(picture) if task.undecodable is not None else None
        if why is not None:
            findings.append(Finding(task.row.name, key, f"does not decode: {why}"))

    try:
        with storage.open_read(task.url) as stream:
            scan = scan_tar(stream, task.row.name, task.shard, shown(task.url), see)
    except DistAlexnetError as exc:  # missing, cut, damaged: said with its URL
        return task.shard, [*findings, Finding(task.row.name, None, str(exc))]
    if scan.row.sha256 != task.row.sha256:
        what = f"has other bytes than were indexed ({scan.row.bytes} bytes, expected {task.row.bytes})"
        findings.append(Finding(task.row.name, None, what))
    if scan.row.keys_digest != task.row.keys_digest or len(scan.samples) != len(task.samples):
        what = f"holds other samples than the index says ({len(scan.samples)}, expected {len(task.samples)})"
        findings.append(Finding(task.row.name, None, what))
    else:
        wrong = [name for name in SAMPLE_DTYPE.names or () if (scan.samples[name] != task.samples[name]).any()]
        if wrong:
            findings.append(Finding(task.row.name, None, f"is described wrongly by the index ({', '.join(wrong)})"))
    return task.shard, findings


def keys_of(index: ShardIndex, sample_ids: NDArray[np.int64]) -> Iterator[tuple[int, str]]:
    """(sample id, key) of the samples, read from their headers. StorageFault as ShardReader."""
    reader = ShardReader(index)
    if storage.local_path(index.folder) is not None:
        for sample_id in sample_ids.tolist():
            yield sample_id, reader.key(sample_id)
        return
    pool = ThreadPoolExecutor(REMOTE_REQUESTS)
    try:
        for at in range(0, len(sample_ids), 8 * REMOTE_REQUESTS):
            some = sample_ids[at : at + 8 * REMOTE_REQUESTS].tolist()
            yield from zip(some, pool.map(reader.key, some), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def find_key(index: ShardIndex, key: str) -> int:
    """The number of the sample with that key. InputError where there is none."""
    found = next((number for number, other in keys_of(index, np.arange(len(index))) if other == key), None)
    if found is None:
        shards = f"{len(index.shards)} shards" if len(index.shards) > 1 else index.shards[0].name
        raise InputError(
            f"there is no sample {key!r} in {shards} of {index.split}: see the keys with dist-alexnet shards ls"
        )
    return found
