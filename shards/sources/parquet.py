"""Parquet files as on the Hugging Face hub (imagenet-1k): a row a picture, columns image{bytes, path} and label."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shards.errors import InputError
from shards.sources.slices import Slices
from shards.storage import local_path, shown

FILE_NAMES = {"train": ("train",), "val": ("validation", "val", "test")}  # of a split; the first that is there is taken
ROWS_AT_A_TIME = 64


@dataclass(frozen=True)
class ParquetSource:
    """The files `<split>-*.parquet` in the local folder `folder`, or in `data/` below it; `val` is `validation` there.

    Rows cannot be read by position, so a split is first copied, row by row, into one file in the folder `spool` (as
    large as its pictures; the caller's to take away), and shuffled out of that. Keys are the names in `image.path`, or
    the split's name and the row's number where there is none. Classes are the names in the files' own metadata, else
    numbers.
    """

    folder: str
    spool: str
    recipe = "parquet"

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the label column by its ClassLabel feature; else the numbers up to the highest label."""
        files = [file for split in FILE_NAMES for file in self._files(split)]
        if not files:
            raise self._lacking("train")
        names = _class_names(_parquet().ParquetFile(files[0]).schema_arrow.metadata or {})
        if names is not None:
            return names
        highest = max(int(row[2]) for file in files for row in _rows(file, ["label"]))
        return tuple(str(label) for label in range(highest + 1))

    def samples(self, split: str) -> Slices:
        """Copy the split's pictures to the spool; by row. InputError for files of another layout."""
        files = self._files(split)
        if not files:
            raise self._lacking(split)
        path = Path(self.spool, f"{split}.pictures")
        try:
            with path.open("wb") as spool:
                keys, labels, lengths = _copy(files, split, spool)
        except OSError as exc:
            raise InputError(f"cannot write {path} ({exc.strerror}): name a folder with room by --spool") from exc
        size = np.array(lengths, np.int64)
        which = np.zeros(len(size), np.int8)
        return Slices((str(path),), np.array(keys), np.array(labels, np.int32), which, np.cumsum(size) - size, size)

    def _files(self, split: str) -> list[str]:
        folder = local_path(self.folder)
        if folder is None or not folder.is_dir():
            raise InputError(f"{shown(self.folder)} is no local folder: name the one with the parquet files")
        for name in FILE_NAMES.get(split, (split,)):
            for place in (folder, folder / "data"):
                found = sorted(str(path) for path in place.glob(f"{name}-*.parquet"))
                if found:
                    return found
        return []

    def _lacking(self, split: str) -> InputError:
        name = FILE_NAMES.get(split, (split,))[0]
        return InputError(f"{shown(self.folder)} holds no {name}-*.parquet, nor its folder data: check the folder")


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as exc:
        raise InputError(
            "reading parquet files needs pyarrow, which is not installed: pip install 'dist-alexnet[parquet]'"
        ) from exc
    return pyarrow.parquet


def _copy(files: list[str], split: str, spool: BinaryIO) -> tuple[list[bytes], list[int], list[int]]:
    """(keys, labels, lengths in bytes) of all rows, whose pictures are appended to `spool`."""
    keys: list[bytes] = []
    labels: list[int] = []
    lengths: list[int] = []
    for file in files:
        for picture, name, label in _rows(file, ["image", "label"]):
            if not picture:
                raise InputError(f"{file} has no bytes in image of row {len(keys)} of {split}: download it again")
            stem = name.rpartition("/")[2].partition(".")[0] if name else f"{split}-{len(keys):08d}"
            keys.append(re.sub(r"[^\w-]", "_", stem).encode())
            labels.append(label)
            lengths.append(len(picture))
            spool.write(picture)
    return keys, labels, lengths


def _rows(file: str, columns: list[str]) -> Iterator[tuple[bytes | None, str | None, int]]:
    """(picture, name, label) of every row; the first two None where `image` is not asked for."""
    try:
        parquet = _parquet().ParquetFile(file)
        types = {column.name: str(column.type) for column in parquet.schema_arrow}
        if not re.match(r"u?int", types.get("label", "")) or not _has_pictures(types.get("image", "")):
            raise InputError(
                f"{file} has the columns {', '.join(types)}: expected image (a struct of bytes and path) and label (a "
                "whole number)"
            )
        for batch in parquet.iter_batches(ROWS_AT_A_TIME, columns=columns):
            labels = batch.column("label").to_pylist()
            images = batch.column("image").to_pylist() if "image" in columns else [None] * len(labels)
            for image, label in zip(images, labels, strict=True):
                if label is None or label < 0:
                    raise InputError(f"{file} has the label {label}: only splits with labels can be built")
                yield (image or {}).get("bytes"), (image or {}).get("path"), label
    except (OSError, ValueError) as exc:  # pyarrow's own errors are of these
        raise InputError(f"{file} is damaged or no parquet file ({type(exc).__name__}): download it again") from exc


def _has_pictures(kind: str) -> bool:
    return kind.startswith("struct<") and "bytes: binary" in kind.replace("large_", "")


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
