"""The index of a shard set: which shards, how long, and where in them each picture lies.

`<split>.index.json` holds the shards (name, bytes, samples, sha256), the classes and the totals; `<split>.index.npy`
holds a row a sample and is memory-mapped where it lies on a local disk. Samples are numbered in the order of the
shards and, in a shard, of the tar.
"""

import difflib
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import storage
from shards.errors import InputError, StorageFault
from shards.names import INDEX_SUFFIX, SIDECAR_SUFFIX, check_split, expand
from shards.storage import shown

SCHEMA_VERSION = 2
# offset, length: the picture inside its tar; head: bytes from the first header block of its member (long-name blocks
# included) to the picture, so that one read brings key and picture; crc: CRC-32 of the picture's bytes.
SAMPLE_DTYPE = np.dtype(
    [("shard", "<u4"), ("head", "<u4"), ("offset", "<u8"), ("length", "<u4"), ("label", "<i4"), ("crc", "<u4")]
)


def key_digest(key: str) -> int:
    """The first 8 bytes, little-endian, of sha256(key): summed mod 2**64 they make an order-free digest of a set."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "little")


@dataclass(frozen=True)
class ShardRow:
    """One tar: file name, size in bytes, number of samples, sha256 (hex), sum of key_digest mod 2**64."""

    name: str
    bytes: int
    samples: int
    sha256: str
    keys_digest: int


@dataclass(frozen=True)
class _Mapped:
    """A table in a local file, as it was when it was mapped."""

    path: str
    version: str

    def load(self) -> NDArray[np.void]:
        if storage.version(self.path) != self.version:
            raise StorageFault(f"{self.path} was written anew while it was in use: start again")
        table: NDArray[np.void] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return table


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """One split of a shard set; `samples` has a row of SAMPLE_DTYPE a sample, sorted by shard.

    `folder` is the URL of the folder of the tars. `classes` is None where only numbers are known. `built_from` is a
    fingerprint of what `build_shards` made the set from, None for tars made by others. `class_info` is a mapping of
    plain values a class, such as the number and words that a data set's makers gave it, where the source knew them.
    """

    folder: str
    split: str
    classes: tuple[str, ...] | None
    num_classes: int
    shards: tuple[ShardRow, ...]
    samples: NDArray[np.void]
    built_from: str | None = None
    class_info: tuple[Mapping[str, Any], ...] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getstate__(self) -> dict[str, Any]:
        """For another process of this machine: a table that is mapped from a file goes as the file's name, and the
        processes share its memory.
        """
        state = dict(vars(self))
        path = getattr(self.samples, "filename", None)
        if isinstance(self.samples, np.memmap) and path is not None and Path(path).exists():
            mapped = _Mapped(str(path), storage.version(str(path)))
            if self.samples.flags.c_contiguous and len(mapped.load()) == len(self.samples):  # and no part of that file
                state["samples"] = mapped
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["samples"], _Mapped):
            state = {**state, "samples": state["samples"].load()}
        vars(self).update(state)

    @property
    def keys_digest(self) -> int:
        """Order-free digest of all keys: the sum of key_digest mod 2**64."""
        return sum(row.keys_digest for row in self.shards) % 2**64

    @property
    def digest(self) -> str:
        """sha256 (hex) that identifies the data: names, sha256 and samples of the shards, number of classes."""
        rows = [[row.name, row.sha256, row.samples] for row in self.shards]
        return hashlib.sha256(json.dumps([self.num_classes, rows]).encode()).hexdigest()

    @property
    def samples_per_shard(self) -> NDArray[np.int64]:
        """Number of samples of each shard, shape (shards,)."""
        return np.array([row.samples for row in self.shards], dtype=np.int64)

    def shard_url(self, shard: int) -> str:
        """The URL of the tar number `shard`."""
        return storage.join(self.folder, self.shards[shard].name)

    def without(self, names: Sequence[str]) -> "ShardIndex":
        """The index less the shards named (`data.exclude`). InputError for an unknown name, or where none is left."""
        known = [row.name for row in self.shards]
        self._check_known(names)
        kept = [name for name in known if name not in set(names)]
        if not kept:
            raise InputError(f"data.exclude leaves none of the {len(known)} shards of {self.split}: exclude fewer")
        return self.select(kept)

    def select(self, names: Sequence[str]) -> "ShardIndex":
        """The index of the shards named, in that order. InputError for an unknown name."""
        if list(names) == [row.name for row in self.shards]:
            return self
        self._check_known(names)
        number = {row.name: shard for shard, row in enumerate(self.shards)}
        ends = np.cumsum(self.samples_per_shard)
        pieces = []
        for new, old in enumerate(number[name] for name in names):
            piece = np.array(self.samples[ends[old] - self.shards[old].samples : ends[old]])
            piece["shard"] = new
            pieces.append(piece)
        return replace(self, shards=tuple(self.shards[number[name]] for name in names), samples=np.concatenate(pieces))

    def _check_known(self, names: Sequence[str]) -> None:
        known = [row.name for row in self.shards]
        for name in names:
            if name not in set(known):
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                raise InputError(f"there is no shard {name!r} in the index of {self.split}: the nearest is {near[0]!r}")


def index_url(folder: str, split: str) -> str:
    """The URL of the index of `split` in `folder`."""
    return storage.join(folder, split + INDEX_SUFFIX)


def read_index(url: str) -> ShardIndex:
    """Read and check an index: `url` is `.../<split>.index.json`, or a pattern over tars with their index beside them.

    A pattern may name some of the shards. InputError, in one sentence, where there is no index or it cannot be right.
    """
    folder, name = storage.parent(url.rpartition("::")[2])
    if name.endswith(INDEX_SUFFIX) and "::" not in url:
        split = name.removesuffix(INDEX_SUFFIX)
        check_split(split)
        if not storage.exists(url):
            raise InputError(f"there is no index {shown(url)}: {_how_to_index(folder, split)}")
        return _read(url, folder, split)
    if not name.endswith(".tar"):
        raise InputError(f"{shown(url)} is neither a .index.json nor a pattern over .tar shards: name one of these")
    folder, split, names = expand(url)
    beside = index_url(folder, split)
    if storage.exists(beside):
        return _read(beside, folder, split).select(names)
    if storage.exists(storage.join(folder, names[0])):
        how = f"make it with: dist-alexnet shards index '{shown(url)}'"
        raise InputError(f"the shards {shown(url)} have no index beside them ({split}{INDEX_SUFFIX}): {how}")
    raise InputError(f"there is neither an index {shown(beside)} nor a shard {names[0]} beside it: check the path")


def write_index(index: ShardIndex, folder_url: str) -> None:
    """Write `<split>.index.npy`, then `<split>.index.json`, into `folder_url`; files that are equal are left alone.

    The bytes depend on the index alone (and on its folder where the tars lie elsewhere). InputError where the folder
    may not be written.
    """
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(index.samples, dtype=SAMPLE_DTYPE), allow_pickle=False)
    table = buffer.getvalue()
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "split": index.split,
        "classes": None if index.classes is None else list(index.classes),
        "num_classes": index.num_classes,
        "built_from": index.built_from,
        # Digests are hexadecimal: many readers of JSON round integers above 2**53.
        "totals": {
            "shards": len(index.shards),
            "samples": len(index),
            "bytes": sum(row.bytes for row in index.shards),
            "keys_digest": f"{index.keys_digest:016x}",
        },
        "sidecar_sha256": hashlib.sha256(table).hexdigest(),
        "shards": [{**vars(row), "keys_digest": f"{row.keys_digest:016x}"} for row in index.shards],
    }
    if index.class_info is not None:
        document["class_info"] = [dict(info) for info in index.class_info]
    if not storage.same_place(index.folder, folder_url):
        path = storage.local_path(index.folder)
        document["folder"] = index.folder if path is None else str(path.resolve())
    _write_unless_equal(storage.join(folder_url, index.split + SIDECAR_SUFFIX), table)
    text = json.dumps(document, sort_keys=True, indent=1) + "\n"
    _write_unless_equal(index_url(folder_url, index.split), text.encode("utf-8"))


def _write_unless_equal(url: str, data: bytes) -> None:
    if not (storage.exists(url) and storage.read_all(url) == data):
        storage.write_atomic(url, data)


def _read(url: str, folder: str, split: str) -> ShardIndex:
    try:
        document = json.loads(storage.read_all(url))
    except ValueError as exc:  # bad JSON, bad UTF-8
        raise _bad(url, f"is not JSON ({exc})") from exc
    if not isinstance(document, dict) or "schema_version" not in document:
        raise _bad(url, "has no schema_version")
    if document["schema_version"] != SCHEMA_VERSION:
        version = document["schema_version"]
        raise _bad(url, f"has schema version {version!r} where {SCHEMA_VERSION} is expected")
    try:
        index = _from_document(document, folder, _read_table(url, folder, split, document["sidecar_sha256"]))
        totals = {key: document["totals"][key] for key in ("shards", "samples", "bytes", "keys_digest")}
    except (KeyError, TypeError, ValueError, AttributeError, EOFError) as exc:
        raise _bad(url, f"does not have the fields of an index ({type(exc).__name__}: {exc})") from exc
    if index.split != split:
        raise _bad(url, f"says it is of split {index.split!r}")
    _check(index, totals, url)
    return index


def _from_document(document: dict[str, Any], folder: str, samples: NDArray[np.void]) -> ShardIndex:
    rows = []
    for row in document["shards"]:
        storage.check_name(row["name"])
        if not re.fullmatch("[0-9a-f]{64}", row["sha256"]):
            raise ValueError(f"sha256 of {row['name']}")
        keys = int(row["keys_digest"], 16)
        rows.append(ShardRow(row["name"], _count(row["bytes"]), _count(row["samples"]), row["sha256"], keys))
    info = document.get("class_info")
    if info is not None and not (len(info) == document["num_classes"] and all(isinstance(one, dict) for one in info)):
        raise ValueError("class_info")
    classes = document["classes"]
    if classes is not None and not all(isinstance(name, str) for name in classes):
        raise ValueError("classes")
    if document.get("folder") is not None:
        folder = document["folder"]
        storage.check_url(folder)
    return ShardIndex(
        folder=folder,
        split=document["split"],
        classes=None if classes is None else tuple(classes),
        num_classes=_count(document["num_classes"]),
        shards=tuple(rows),
        samples=samples,
        built_from=document.get("built_from"),
        class_info=None if info is None else tuple(info),
    )


def _count(value: Any) -> int:
    if type(value) is not int or value <= 0:
        raise ValueError(f"{value!r} is not a positive number")
    return value


def _read_table(url: str, folder: str, split: str, sha256: str) -> NDArray[np.void]:
    sidecar = storage.join(folder, split + SIDECAR_SUFFIX)
    if not storage.exists(sidecar):
        raise _bad(url, f"has no {split}{SIDECAR_SUFFIX} beside it")
    path = storage.local_path(sidecar)

    def check(data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != sha256:
            what = f"is not the table that {split}{INDEX_SUFFIX} describes ({len(data)} bytes)"
            wrong = _bad(sidecar, what)
            # From elsewhere it is asked for again: the bytes may have suffered on the way.
            raise wrong if path is not None else StorageFault(str(wrong))

    data = storage.read_all(sidecar, check)
    if path is not None:
        check(data)
    table: NDArray[np.void]
    if path is None:
        table = np.load(io.BytesIO(data), allow_pickle=False)
    else:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    if table.dtype != SAMPLE_DTYPE or table.ndim != 1:
        raise _bad(sidecar, f"has rows of {table.dtype} where {SAMPLE_DTYPE} is expected")
    return table


def _check(index: ShardIndex, totals: dict[str, Any], url: str) -> None:
    """What a reader relies on: sums, sorted rows, pictures inside their tars, labels inside the classes."""
    found = {
        "shards": len(index.shards),
        "samples": sum(row.samples for row in index.shards),
        "bytes": sum(row.bytes for row in index.shards),
        "keys_digest": f"{index.keys_digest:016x}",
    }
    for key, value in found.items():
        if totals[key] != value:
            raise _bad(url, f"says {key} {totals[key]!r} in all, but its shards sum to {value!r}")
    if len(index) != found["samples"]:
        raise _bad(url, f"counts {found['samples']} samples, but its sidecar has {len(index)} rows")
    if not index.shards:
        raise _bad(url, "names no shard")
    if len({row.name for row in index.shards}) != len(index.shards):
        raise _bad(url, "names a shard twice")
    if index.classes is not None and len(index.classes) != index.num_classes:
        raise _bad(url, f"names {len(index.classes)} classes, but says num_classes {index.num_classes}")
    table = index.samples
    if not np.array_equal(table["shard"], np.repeat(np.arange(len(index.shards)), index.samples_per_shard)):
        raise _bad(url, "does not list its samples shard by shard")
    sizes = np.array([row.bytes for row in index.shards], dtype=np.uint64)
    room = sizes[table["shard"]] - np.minimum(table["offset"], sizes[table["shard"]])  # no sum that could overflow
    if (table["length"] > room).any() or (table["offset"] < table["head"]).any():
        raise _bad(url, "has a picture that lies outside its shard")
    if int(table["label"].min()) < 0 or int(table["label"].max()) >= index.num_classes:
        raise _bad(url, f"has a label outside 0..{index.num_classes - 1}")


def _bad(url: str, what: str) -> InputError:
    return InputError(f"the index {shown(url)} {what}: make it again with dist-alexnet shards index")


def _how_to_index(folder: str, split: str) -> str:
    path = storage.local_path(folder)
    tars = _numbered_tars(path, split) if path is not None else []
    if not tars:
        pattern = f"{shown(folder)}/{split}-{{000000..NNNNNN}}.tar"
        return f"check the path, or make it from the tars with: dist-alexnet shards index '{pattern}'"
    span = f"{{{tars[0]}..{tars[-1]}}}" if len(tars) > 1 else tars[0]
    return f"make it with: dist-alexnet shards index '{folder}/{split}-{span}.tar'"


def _numbered_tars(folder: Path, split: str) -> list[str]:
    found = (re.fullmatch(re.escape(split) + r"-(\d+)\.tar", path.name) for path in folder.glob(f"{split}-*.tar"))
    return sorted(match.group(1) for match in found if match)
