"""Which classes are right: the set's classes by the network's numbers, and labels of one's own (--labels)."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_alexnet.judging.figures import Truth
from shards import storage
from shards.errors import InputError
from shards.index import ShardIndex
from shards.storage import shown

WNID = r"n\d{8}"
IMAGENET_KEY = r"(?:.*[_/])?ILSVRC2012_val_(\d{8})"  # a folder source puts the class before the file's name


@dataclass(frozen=True, eq=False)
class Matched:
    """The network's number of each class of a set, and how they were matched."""

    number_of: NDArray[np.int64]
    how: str


def matched_classes(index: ShardIndex, classes: Sequence[str] | None, num_classes: int, of: str) -> Matched:
    """Match a set's classes with a network's, by name where both have names. of: names the network in an error.

    The same names in another order, or some of them, are found by name. Where the set's names are numbers (folders 0
    to 999, as ImageNet-V2 has them) and the network's are wnids, or not known, a number is the class's place among the
    sorted wnids. Raises InputError for a set with a class that the network does not have.
    """
    if index.num_classes > num_classes:
        raise InputError(
            f"the {index.split} shards in {shown(index.folder)} have {index.num_classes} classes, {of} knows "
            f"{num_classes}: name a set of the same classes"
        )
    same, own = np.arange(index.num_classes), index.classes
    if own is None:
        return Matched(same, "by number: the set names no classes")
    if classes is not None and tuple(own) == tuple(classes[: len(own)]):
        return Matched(same, "the same names")
    numbers = _numbers(own, num_classes)
    if numbers is not None and _are_places_of_wnids(classes):
        return Matched(numbers, "by number: the names of the set's classes are numbers")
    if classes is None:
        return Matched(same, "by number: the checkpoint names no classes")
    place = {name: number for number, name in enumerate(classes)}
    strange = next((name for name in own if name not in place), None)
    if strange is not None:
        raise InputError(
            f"the {index.split} shards in {shown(index.folder)} have the class {strange!r}, which is none of the "
            f"{num_classes} of {of} (such as {classes[0]!r}): name a set of the same classes"
        )
    return Matched(np.array([place[name] for name in own], dtype=np.int64), "by name")


def _numbers(names: Sequence[str], num_classes: int) -> NDArray[np.int64] | None:
    """The classes as numbers, where all of their names are such, and different ones."""
    if not all(re.fullmatch(r"[0-9]{1,9}", name) for name in names):
        return None
    numbers = [int(name) for name in names]
    fit = len(set(numbers)) == len(numbers) and max(numbers) < num_classes
    return np.array(numbers, dtype=np.int64) if fit else None


def _are_places_of_wnids(classes: Sequence[str] | None) -> bool:
    """Whether the network's numbers count sorted wnids, as far as that is known."""
    if classes is None:
        return True
    return all(re.fullmatch(WNID, name) for name in classes) and list(classes) == sorted(classes)


@dataclass(frozen=True)
class Labels:
    """A file of labels: right classes by key, or by the number of an ILSVRC2012 validation picture."""

    url: str
    by_key: dict[str, tuple[int, ...]] | None
    by_number: tuple[tuple[int, ...], ...] | None

    def of(self, key: str) -> tuple[int, ...]:
        """The right classes of one image; none: it is left out. Raises InputError for a key that has no number."""
        if self.by_number is None:
            return (self.by_key or {}).get(key, ())
        found = re.fullmatch(IMAGENET_KEY, key)
        if found is None or not 1 <= int(found.group(1)) <= len(self.by_number):
            raise InputError(
                f"{shown(self.url)} is a list of {len(self.by_number)} entries in the order of ILSVRC2012_val_00000001 "
                f"and so on, and the set has the key {key!r}: give an object of keys and their classes instead"
            )
        return self.by_number[int(found.group(1)) - 1]

    def truth(self, keys: Sequence[str]) -> Truth:
        """The right classes of the images with these keys. Raises InputError for labels of an image not among them."""
        strange = sorted(set(self.by_key or ()) - set(keys))
        if strange:
            raise InputError(
                f"{shown(self.url)} has labels of {strange[0]!r}, which is no key of the set ({len(strange)} such): "
                "name the set that the labels are of"
            )
        right = [sorted(set(self.of(key))) for key in keys]
        if not any(right):
            raise InputError(f"{shown(self.url)} has no label for any of the {len(keys)} images: name its set")
        image_P = np.repeat(np.arange(len(right)), [len(one) for one in right])
        return Truth(image_P, np.array([number for one in right for number in one], dtype=np.int64))


def read_labels(url: str, images: int, classes: Sequence[str] | None, num_classes: int) -> Labels:
    """Labels for a set of `images`: a JSON list of lists, as ReaL's, or an object of keys and lists.

    A class is its number, or in an object also its name. The numbers of a list are places among the sorted wnids.
    Raises InputError for what does not fit the network's classes or the set.
    """
    try:
        document = json.loads(storage.read_all(url)) if storage.exists(url) else None
    except (ValueError, RecursionError) as exc:
        raise InputError(f"the labels {shown(url)} are not JSON ({exc}): give a list of lists, or an object") from exc
    if document is None:
        raise InputError(f"there are no labels {shown(url)}: check the path")
    entries = document.values() if isinstance(document, dict) else document
    if not isinstance(document, dict | list) or not all(isinstance(one, list) for one in entries):
        raise InputError(f"the labels {shown(url)} are neither a list of lists nor an object of lists: see ReaL's")
    numbers = {name: number for number, name in enumerate(classes or ())}
    if isinstance(document, dict):
        return Labels(url, {key: _right(url, one, numbers, num_classes) for key, one in document.items()}, None)
    if len(document) != images:
        raise InputError(f"the labels {shown(url)} are {len(document)}, and the set has {images} images: name its set")
    if classes is not None and not _in_sorted_order(classes):
        raise InputError(
            f"the numbers in {shown(url)} are places among sorted classes, and the checkpoint's classes are not in "
            "that order: give an object of keys and names of classes instead"
        )
    return Labels(url, None, tuple(_right(url, one, {}, num_classes) for one in document))


def _right(url: str, entry: list[object], numbers: dict[str, int], num_classes: int) -> tuple[int, ...]:
    found = []
    for one in entry:
        number = numbers.get(one) if isinstance(one, str) else one
        if type(number) is not int or not 0 <= number < num_classes:
            raise InputError(
                f"the labels {shown(url)} name the class {one!r}, expected a number of 0..{num_classes - 1}"
                + (", or a name of the checkpoint's classes" if numbers else "")
            )
        found.append(number)
    return tuple(found)


def _in_sorted_order(classes: Sequence[str]) -> bool:
    """Numbers as numbers: 2 before 10, since 10 is what a list calls class 10."""
    if all(re.fullmatch(r"[0-9]{1,9}", name) for name in classes):
        return [int(name) for name in classes] == list(range(len(classes)))
    return list(classes) == sorted(classes)
