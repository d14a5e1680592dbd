"""ILSVRC 2012 as it is downloaded: a tar of a tar a class, a flat tar of validation pictures, and the devkit."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shards.errors import InputError
from shards.sources.archive import members, opened
from shards.sources.devkit import WNID, Devkit, read_devkit
from shards.sources.slices import Slices
from shards.sources.source import ClassInfo
from shards.storage import local_path, shown

VALIDATION_NAME = r"ILSVRC2012_val_(\d{8})\.JPEG"
# A row a picture, while an archive is walked over.
ROW = np.dtype([("key", "S32"), ("label", "<i4"), ("offset", "<i8"), ("length", "<i8")])


@dataclass(frozen=True)
class ImageNetSource:
    """Splits `train` and `val`, out of the archives `train` (ILSVRC2012_img_train.tar) and `val`
    (ILSVRC2012_img_val.tar) with `devkit` (ILSVRC2012_devkit_t12.tar.gz); each may be None where it is not needed.

    Labels are the places of the wnids in sorted order. Pictures are read where they lie, by position: nothing is
    unpacked. Their bytes are kept: a PNG or CMYK JPEG under the name .JPEG stays what it is.
    """

    train: str | None = None
    val: str | None = None
    devkit: str | None = None

    recipe = "ilsvrc 2012, bytes as published"

    @property
    def classes(self) -> tuple[str, ...]:
        """The wnids, sorted: the devkit's, or without one those of the training archive."""
        return self._train_classes if self._devkit is None else self._devkit.wnids

    @property
    def class_info(self) -> ClassInfo | None:
        """Number and words of each class in the devkit; None without one."""
        kit = self._devkit
        if kit is None:
            return None
        return tuple({"ilsvrc_id": number, "words": words} for number, words in zip(kit.ids, kit.words, strict=True))

    def samples(self, split: str) -> Slices:
        """The pictures by key, after a walk over the archive's headers. InputError for an archive of another shape."""
        if split == "train" and self.train is not None:
            return self._train_samples(self.train)
        if split == "val" and self.val is not None:
            if self._devkit is None:
                raise InputError(
                    f"the classes of the pictures in {shown(self.val)} are in the devkit: give --devkit "
                    "ILSVRC2012_devkit_t12.tar.gz as well"
                )
            return _validation_samples(self.val, self._devkit, str(self.devkit))
        raise InputError(f"there is no archive for split {split!r}: give the one of train or val")

    @cached_property
    def _devkit(self) -> Devkit | None:
        return None if self.devkit is None else read_devkit(self.devkit)

    @cached_property
    def _class_tars(self) -> dict[str, tuple[int, int]]:
        """wnid -> first and last byte of its tar inside the training archive, by sorted wnid."""
        if self.train is None:
            raise InputError("there is neither a training archive nor a devkit to take the classes from: give one")
        found: dict[str, tuple[int, int]] = {}
        with opened(self.train) as file:
            for member in members(file, 0, _size(file), shown(self.train)):
                match = re.fullmatch(rf"({WNID})\.tar", member.name.removeprefix("./"))
                if match is None or match.group(1) in found:
                    what = "twice" if match else "where one tar a class, such as n01440764.tar, is expected"
                    raise InputError(
                        f"{shown(self.train)} holds {member.name!r} {what}: bring ILSVRC2012_img_train.tar as it was "
                        "published"
                    )
                found[match.group(1)] = (member.offset, member.offset + member.size)
        if not found:
            raise InputError(f"{shown(self.train)} is empty: bring ILSVRC2012_img_train.tar as it was published")
        return dict(sorted(found.items()))

    @cached_property
    def _train_classes(self) -> tuple[str, ...]:
        return tuple(self._class_tars)

    def _train_samples(self, url: str) -> Slices:
        if self._devkit is not None and self._train_classes != self._devkit.wnids:
            odd = sorted(set(self._train_classes) ^ set(self._devkit.wnids))[0]
            raise InputError(
                f"{shown(url)} has {len(self._train_classes)} classes where the devkit has {len(self.classes)} (only "
                f"one of the two has {odd}): bring both of the same year"
            )
        with opened(url) as file:
            pieces = [
                _class_rows(file, shown(url), label, wnid, *span)
                for label, (wnid, span) in enumerate(self._class_tars.items())
            ]
        return _slices(url, np.concatenate(pieces))


def _class_rows(file: BinaryIO, where: str, label: int, wnid: str, start: int, end: int) -> Any:
    inner = f"{where}, in it {wnid}.tar,"
    rows = []
    for member in members(file, start, end, inner):
        match = re.fullmatch(rf"({wnid}_\d{{1,16}})\.JPEG", member.name.removeprefix("./"))
        if match is None:
            raise InputError(
                f"{inner} holds {member.name!r} where {wnid}_<number>.JPEG is expected: bring ILSVRC2012_img_train.tar "
                "as it was published"
            )
        rows.append((match.group(1), label, member.offset, _length(member.size, member.name, inner)))
    if not rows:
        raise InputError(f"{inner} holds no picture: bring ILSVRC2012_img_train.tar as it was published")
    return np.array(rows, ROW)


def _validation_samples(url: str, devkit: Devkit, devkit_url: str) -> Slices:
    labels, rows = devkit.validation_labels(), []
    with opened(url) as file:
        for member in members(file, 0, _size(file), shown(url)):
            match = re.fullmatch(VALIDATION_NAME, member.name.rpartition("/")[2])
            if match is None:
                raise InputError(
                    f"{shown(url)} holds {member.name!r} where ILSVRC2012_val_<number>.JPEG is expected: bring "
                    "ILSVRC2012_img_val.tar as it was published"
                )
            number = int(match.group(1))
            if not 1 <= number <= len(labels):
                raise InputError(
                    f"{shown(url)} holds {member.name!r}, but the devkit {shown(devkit_url)} has classes for the "
                    f"pictures 1 to {len(labels)}: bring both of the same year"
                )
            length = _length(member.size, member.name, shown(url))
            rows.append((Path(member.name).stem, labels[number - 1], member.offset, length))
    if len(rows) != len(labels):
        raise InputError(
            f"{shown(url)} holds {len(rows)} pictures, but the devkit {shown(devkit_url)} has the classes of "
            f"{len(labels)}: bring both of the same year, and whole"
        )
    return _slices(url, np.array(rows, ROW))


def _slices(url: str, rows: Any) -> Slices:
    which = np.zeros(len(rows), np.int8)
    keys, labels, offsets, lengths = (np.ascontiguousarray(rows[name]) for name in ROW.names or ())
    return Slices((str(local_path(url)),), keys, labels, which, offsets, lengths).by_key()


def _length(size: int, name: str, where: str) -> int:
    if size == 0:
        raise InputError(f"{where} holds {name!r}, which is empty: bring the archive as it was published")
    return size


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)
