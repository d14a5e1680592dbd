"""Making shard sets: out of a source of pictures, or an index for tars that others made."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import BinaryIO

import numpy as np

from shards import storage
from shards.errors import InputError
from shards.hashing import hash64
from shards.index import ShardIndex, index_url, read_index, write_index
from shards.names import check_split, expand
from shards.sources.source import Source, SourceSample
from shards.storage import shown
from shards.tars import TarScan, scan_tar

Progress = Callable[[int, int], None]


def build_shards(
    source: Source,
    split: str,
    to_url: str,
    *,
    samples_per_shard: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> ShardIndex:
    """Shuffle the source's split by `seed` and write it as tars of `samples_per_shard` samples and an index.

    Same source, seed and size, same bytes in every file. A tar appears only whole, the index last. Where the folder
    already holds this very build (by the index's fingerprint of source, keys, labels, file sizes, seed and shard size,
    and by the sizes of its tars) it is returned as it is. InputError, and nothing overwritten, where the folder holds
    another build of that split, or a tar of that name with other bytes. A build that was killed goes on when called
    again. `progress(done, total)` counts samples.
    """
    check_split(split)
    storage.check_url(to_url)
    if samples_per_shard < 1:
        raise InputError(f"samples_per_shard is {samples_per_shard}: expected 1 or more")
    samples = source.samples(split)
    _check_samples(samples, source, split)
    built_from = _fingerprint(source, samples, samples_per_shard, seed)
    existing = _existing_build(to_url, split, built_from)
    if existing is not None:
        return existing

    order = np.argsort(hash64(seed, "shards/build", np.arange(len(samples))), kind="stable").tolist()
    scans = []
    for shard, start in enumerate(range(0, len(samples), samples_per_shard)):
        chosen = [samples[i] for i in order[start : start + samples_per_shard]]
        scans.append(_write_tar(to_url, f"{split}-{shard:06d}.tar", shard, chosen))
        if progress is not None:
            progress(start + len(chosen), len(samples))
    index = _index_of(scans, to_url, split, source.classes, len(source.classes), built_from)
    write_index(index, to_url)
    return read_index(index_url(to_url, split))


def index_shards(pattern: str, to_url: str | None = None, progress: Progress | None = None) -> ShardIndex:
    """Write the index of tars that others made, beside them or into `to_url`, in one pass over each tar.

    `pattern` is `.../train-{000000..000010}.tar`; classes are numbers, 0 to the highest label found. An index
    there that is equal is left as it is; another is replaced, keeping its class names where they still fit. InputError,
    and nothing written, for a tar that is missing, cut or holds what no reader should follow (shards/tars.py), for a
    key that comes twice, and where the index there lists tars the pattern leaves out. `progress(done, total)` counts
    tars.
    """
    folder, split, names = expand(pattern)
    place = folder if to_url is None else to_url
    storage.check_url(place)
    old = _old_index(place, split, names)
    for name in names:
        if not storage.exists(storage.join(folder, name)):
            raise InputError(f"there is no {name} in {shown(folder)}: name only tars that are there")
    seen: dict[str, str] = {}
    scans = []
    for shard, name in enumerate(names):
        url = storage.join(folder, name)
        with storage.open_read(url) as stream:
            scan = scan_tar(stream, name, shard, shown(url))
        for key in scan.keys:
            if key in seen:
                raise InputError(f"{shown(url)} holds the key {key!r}, which {seen[key]} has already: keys must differ")
            seen[key] = name
        scans.append(scan)
        if progress is not None:
            progress(shard + 1, len(names))
    num_classes = 1 + max(int(scan.samples["label"].max()) for scan in scans)
    index = _index_of(scans, folder, split, None, num_classes, None)
    if old is not None and old.num_classes >= num_classes:
        same = old.shards == index.shards
        built_from = old.built_from if same else None
        index = _index_of(scans, folder, split, old.classes, old.num_classes, built_from)
    write_index(index, place)
    return read_index(index_url(place, split))


def _check_samples(samples: Sequence[SourceSample], source: Source, split: str) -> None:
    if not samples:
        raise InputError(f"the source has no samples for split {split!r}: nothing to build")
    seen = set()
    for sample in samples:
        if not sample.key or "." in sample.key or "/" in sample.key or sample.key in seen:
            raise InputError(f"the source's key {sample.key!r} comes twice, or has a dot or slash in it: rename it")
        if not 0 <= sample.label < len(source.classes):
            raise InputError(f"{sample.key!r} has class {sample.label}: expected 0..{len(source.classes) - 1}")
        seen.add(sample.key)


def _fingerprint(source: Source, samples: Sequence[SourceSample], samples_per_shard: int, seed: int) -> str:
    rows = [[sample.key, sample.label, sample.size_bytes] for sample in samples]
    text = json.dumps([source.recipe, source.classes, samples_per_shard, seed, rows])
    return hashlib.sha256(text.encode()).hexdigest()


def _existing_build(to_url: str, split: str, built_from: str) -> ShardIndex | None:
    """The index in the folder where it is this very build; None where there is none; InputError for another."""
    url = index_url(to_url, split)
    if not storage.exists(url):
        return None
    index = read_index(url)
    if index.built_from != built_from:
        raise InputError(
            f"{shown(to_url)} already holds a split {split} built from something else (another source, seed or shard "
            "size): name another folder, or take that one away first"
        )
    for shard, row in enumerate(index.shards):
        tar = index.shard_url(shard)
        if not storage.exists(tar) or storage.size_bytes(tar) != row.bytes:
            raise InputError(
                f"{shown(tar)} is not the {row.bytes} bytes that its index says: take {shown(url)} and that tar away, "
                "then build again"
            )
    return index


def _write_tar(folder: str, name: str, shard: int, samples: Sequence[SourceSample]) -> TarScan:
    """Write one tar and scan it before it gets its name. InputError where that name has other bytes already."""
    from webdataset import TarWriter  # imports torch, so only here

    url = storage.join(folder, name)
    scans: list[TarScan] = []

    def write(file: BinaryIO) -> None:
        # mtime, user, group and mode are fixed so that the bytes depend on the samples alone.
        with TarWriter(
            file, encoder=False, mtime=0, user="root", group="root", mode=0o644, compress=False, format="PAX_FORMAT"
        ) as tar:
            for sample in samples:
                tar.write({"__key__": sample.key, "jpg": sample.load(), "cls": b"%d" % sample.label})
        file.seek(0)
        scans.append(scan_tar(file, name, shard, shown(url)))
        if storage.exists(url) and _sha256(url) != scans[0].row.sha256:
            raise InputError(f"{shown(url)} is there already with other bytes: name another folder, or take it away")

    storage.write_atomic(url, write)
    return scans[0]


def _sha256(url: str) -> str:
    with storage.open_read(url) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _index_of(
    scans: Sequence[TarScan],
    folder: str,
    split: str,
    classes: tuple[str, ...] | None,
    num_classes: int,
    built_from: str | None,
) -> ShardIndex:
    return ShardIndex(
        folder=folder,
        split=split,
        classes=classes,
        num_classes=num_classes,
        shards=tuple(scan.row for scan in scans),
        samples=np.concatenate([scan.samples for scan in scans]),
        built_from=built_from,
    )


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
