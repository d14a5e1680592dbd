"""Indexing tars that others made: one pass over each, several at a time, taken up again where it was broken off."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shards import storage
from shards.errors import InputError
from shards.index import SAMPLE_DTYPE, ShardIndex, ShardRow, index_url, read_index, write_index
from shards.names import check_split, expand
from shards.processes import each_done
from shards.storage import shown
from shards.tars import TarScan, scan_tar

Progress = Callable[[int, int], None]  # tars done, of all
NOTE_VERSION = 1


def index_shards(
    pattern: str,
    to_url: str | None = None,
    progress: Progress | None = None,
    *,
    workers: int = 1,
    split: str | None = None,
) -> ShardIndex:
    """Write the index of tars that others made, beside them or into `to_url`, in one pass over each tar.

    `pattern` as `names.expand` takes it, such as `.../train-{000000..000010}.tar`; `split` names the index where the
    pattern does not. Classes are numbers, 0 to the highest label found. What is found in a tar is noted beside the
    index until that is written, so that a start after a break passes over tars that have not changed since. An index
    there that is equal is left as it is; another is replaced, keeping its class names where they still fit. InputError,
    and no index written, for a tar that is missing, cut or holds what no reader should follow (shards/tars.py), for a
    key that comes twice, and where the index there lists tars the pattern leaves out.
    """
    folder, found_split, names = expand(pattern, split)
    return index_tars(folder, found_split, names, folder if to_url is None else to_url, progress, workers)


def index_tars(
    folder: str, split: str, names: Sequence[str], place: str, progress: Progress | None = None, workers: int = 1
) -> ShardIndex:
    """`index_shards`, of the tars `names` in `folder`, into `place`."""
    check_split(split)
    storage.check_writable(place)
    old = _old_index(place, split, names)
    for name in names:
        if not storage.exists(storage.join(folder, name)):
            raise InputError(f"there is no {name} in {shown(folder)}: name only tars that are there")
    tasks = [
        _Task(folder, name, shard, storage.join(place, f".{split}.{name}.scan")) for shard, name in enumerate(names)
    ]
    scans: dict[str, TarScan] = {}
    for scan in each_done(_scan, tasks, workers):
        scans[scan.row.name] = scan
        if progress is not None:
            progress(len(scans), len(names))
    whole = [scans[name] for name in names]
    _check_keys(whole, folder)
    num_classes = 1 + max(int(scan.samples["label"].max()) for scan in whole)
    index = ShardIndex(
        folder=folder,
        split=split,
        classes=None,
        num_classes=num_classes,
        shards=tuple(scan.row for scan in whole),
        samples=np.concatenate([scan.samples for scan in whole]),
    )
    write_index(_as_it_was(index, old), place)
    for task in tasks:
        storage.remove(task.note_url)
    return read_index(index_url(place, split))


@dataclass(frozen=True)
class _Task:
    """One tar to scan, and where to note what was found."""

    folder: str
    name: str
    shard: int
    note_url: str


def _scan(task: _Task) -> TarScan:
    """What the note says, where the tar has not changed since; else one pass over the tar, noted."""
    url = storage.join(task.folder, task.name)
    version = storage.version(url)
    scan = _read_note(task, version)
    if scan is None:
        with storage.open_read(url) as stream:
            scan = scan_tar(stream, task.name, task.shard, shown(url))
        _write_note(task, version, scan)
    return scan


def _write_note(task: _Task, version: str, scan: TarScan) -> None:
    document = {
        "note": NOTE_VERSION,
        "tar": version,
        "row": vars(scan.row),
        "samples": scan.samples[list(SAMPLE_DTYPE.names or ())].tolist(),
        "keys": scan.keys,
    }
    storage.write_atomic(task.note_url, json.dumps(document).encode())


def _read_note(task: _Task, version: str) -> TarScan | None:
    """None where there is no note, or one of another tar: it only saves work."""
    if not storage.exists(task.note_url):
        return None
    try:
        document = json.loads(storage.read_all(task.note_url))
        if document["note"] != NOTE_VERSION or document["tar"] != version:
            return None
        samples = np.array([tuple(row) for row in document["samples"]], dtype=SAMPLE_DTYPE)
        samples["shard"] = task.shard
        row = ShardRow(**document["row"])
        keys = tuple(document["keys"])
    except (ValueError, KeyError, TypeError):
        return None
    return TarScan(row, samples, keys) if len(keys) == len(samples) == row.samples and row.name == task.name else None


def _check_keys(scans: Sequence[TarScan], folder: str) -> None:
    seen: dict[str, str] = {}
    for scan in scans:
        for key in scan.keys:
            if key in seen:
                url = shown(storage.join(folder, scan.row.name))
                raise InputError(f"{url} holds the key {key!r}, which {seen[key]} has already: keys must differ")
            seen[key] = scan.row.name


def _as_it_was(index: ShardIndex, old: ShardIndex | None) -> ShardIndex:
    """The new index with what the old one knew beyond the tars, as far as it still fits."""
    if old is None or old.num_classes < index.num_classes:
        return index
    built_from = old.built_from if old.shards == index.shards else None
    return replace(old, folder=index.folder, shards=index.shards, samples=index.samples, built_from=built_from)


def _old_index(place: str, split: str, names: Sequence[str]) -> ShardIndex | None:
    """The readable index that is to be replaced. InputError where it lists tars that `names` leaves out."""
    url = index_url(place, split)
    if not storage.exists(url):
        return None
    try:
        old = read_index(url)
    except InputError:
        return None  # what cannot be read is what the user wants made again
    for shard, row in enumerate(old.shards):
        if row.name not in set(names) and storage.exists(old.shard_url(shard)):
            raise InputError(
                f"the index {shown(url)} also lists {row.name}, which the pattern leaves out: name all its shards, or "
                "read some of them by a pattern instead of indexing them anew"
            )
    return old
