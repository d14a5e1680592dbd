"""What a network, or the mean of several, said of every image of a set: in memory, and in a file to be averaged later.

The file is numpy's .npz without pickled objects: `keys` (UTF-8 bytes), `labels` (int64), `probabilities` (fp32, a row
an image in the order of the index), `classes` (UTF-8 bytes; none where only numbers are known), and `about`, a JSON
text: version, number of classes, digest of the set, and what the probabilities were made of.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards import storage
from shards.errors import InputError
from shards.index import ShardIndex, key_digest
from shards.storage import shown

SUFFIX = ".npz"
VERSION = 1
ARRAYS = {"keys": ("S", 1), "labels": ("i", 1), "probabilities": ("f", 2), "classes": ("S", 1), "about": ("S", 0)}


@dataclass(frozen=True, eq=False)
class Answers:
    """A row an image, in the order of the index. Shapes: N images, C classes."""

    keys: tuple[str, ...]
    label_N: NDArray[np.int64]  # by the network's numbers
    probability_NC: NDArray[np.float32]  # a row of zeros: the picture did not decode
    classes: tuple[str, ...] | None
    made_of: tuple[dict[str, Any], ...] = ()  # plain values: checkpoint, step, views, weight

    @property
    def bad(self) -> NDArray[np.bool_]:
        """Which pictures did not decode, (N,)."""
        return np.asarray(self.probability_NC.max(axis=1) == 0)

    @property
    def set_digest(self) -> str:
        """sha256 (hex) of keys and labels, in order: what else was asked about the same images has the same."""
        text = "".join(f"{key}\0{label}\n" for key, label in zip(self.keys, self.label_N.tolist(), strict=True))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def check_new(url: str) -> None:
    """Raise InputError where answers cannot be written to `url`, or something is there already."""
    storage.check_writable(url)
    if not url.endswith(SUFFIX):
        raise InputError(f"--probabilities {shown(url)} does not end with {SUFFIX}: evaluate knows such files by that")
    path = storage.local_path(url)
    if path is not None and not path.absolute().parent.is_dir():
        raise InputError(f"--probabilities {url} cannot be written: give a file name in a folder that exists")
    if storage.exists(url):
        raise InputError(f"--probabilities {shown(url)} is there already and is not overwritten: name another file")


def write_answers(url: str, answers: Answers) -> None:
    """Write a file that appears whole or not at all. Raises InputError, StorageFault."""
    if not np.isfinite(answers.probability_NC).all():
        raise InputError(f"{shown(url)} is not written: the network answers with numbers that are not finite")
    about = {
        "version": VERSION,
        "num_classes": answers.probability_NC.shape[1],
        "set_digest": answers.set_digest,
        "made_of": answers.made_of,
    }

    def write(file: BinaryIO) -> None:
        np.savez(
            file,
            keys=_as_bytes(answers.keys),
            labels=answers.label_N.astype(np.int64),
            probabilities=answers.probability_NC,
            classes=_as_bytes(answers.classes or ()),
            about=np.array(json.dumps(about).encode()),
        )

    storage.write_atomic(url, write)


def read_answers(url: str) -> Answers:
    """What `write_answers` wrote. Raises InputError for anything else, StorageFault."""
    if not storage.exists(url):
        raise InputError(f"there is no file {shown(url)}: name one that evaluate --probabilities wrote")
    content = io.BytesIO(storage.read_all(url))
    try:
        # Bytes from elsewhere: nothing in them is ever unpickled.
        with np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS}
        about = json.loads(arrays["about"].item())
        version, num_classes, digest = about["version"], about["num_classes"], about["set_digest"]
        made_of = tuple(dict(one) for one in about["made_of"])
        keys, classes = _as_text(arrays["keys"]), _as_text(arrays["classes"])
    except Exception as exc:  # damaged files make zipfile, its decompressors and numpy raise nearly anything
        raise _bad(url, f"cannot be read ({type(exc).__name__}: {exc})") from exc
    if version != VERSION:
        raise _bad(url, f"has version {version!r}, expected {VERSION}")
    for name, (kind, dims) in ARRAYS.items():
        if arrays[name].dtype.kind != kind or arrays[name].ndim != dims:
            raise _bad(url, f"has {name} of {arrays[name].dtype} in {arrays[name].ndim} dims, expected {dims}")
    answers = Answers(keys, arrays["labels"], arrays["probabilities"], classes or None, made_of)
    _check(url, answers, num_classes, digest)
    return answers


def check_same_set(url: str, answers: Answers, index: ShardIndex, label_of: NDArray[np.int64]) -> None:
    """Raise InputError unless these are answers about each image of `index` once, by count, digest and labels.

    label_of: the network's number of each class of the index.
    """
    keys = sum(map(key_digest, answers.keys)) % 2**64
    if len(answers.keys) != len(index) or keys != index.keys_digest:
        raise InputError(
            f"{shown(url)} has answers about {len(answers.keys)} images with key digest {keys:016x}, and the "
            f"{index.split} shards in {shown(index.folder)} are {len(index)} with {index.keys_digest:016x}: name the "
            "set that it was made of"
        )
    if not np.array_equal(answers.label_N, label_of[index.samples["label"]]):
        raise InputError(
            f"{shown(url)} has the images of the {index.split} shards in {shown(index.folder)} in another order or "
            "with other labels: name the set that it was made of"
        )


def _check(url: str, answers: Answers, num_classes: Any, digest: object) -> None:
    """What an average relies on."""
    images, probability_NC = len(answers.keys), answers.probability_NC
    if probability_NC.dtype != np.float32 or probability_NC.shape != (images, num_classes) or images == 0:
        raise _bad(
            url,
            f"has probabilities of shape {probability_NC.shape} and {probability_NC.dtype}, expected fp32 for {images} "
            f"images and {num_classes} classes",
        )
    if answers.classes is not None and len(answers.classes) > num_classes:  # fewer: the network has some to spare
        raise _bad(url, f"names {len(answers.classes)} classes, expected at most {num_classes}")
    labels = answers.label_N
    if len(labels) != images or labels.min() < 0 or labels.max() >= probability_NC.shape[1]:
        raise _bad(url, f"has labels outside 0..{probability_NC.shape[1] - 1}, or not one an image")
    if len(set(answers.keys)) != images:
        raise _bad(url, "has an image twice")
    total_N = probability_NC.sum(axis=1, dtype=np.float64)
    whole_N = answers.bad | (np.abs(total_N - 1) < 1e-3)  # NaN is in no such row
    if not whole_N.all() or (probability_NC < 0).any():
        row = int(np.flatnonzero(~whole_N | (probability_NC < 0).any(axis=1))[0])
        raise _bad(url, f"has no probabilities in the row of {answers.keys[row]} (sum {total_N[row]:g}, expected 1)")
    if digest != answers.set_digest:
        raise _bad(url, "was changed: its keys and labels have another digest than it says")


def _as_bytes(texts: Sequence[str]) -> NDArray[np.bytes_]:
    return np.array([text.encode("utf-8", "surrogateescape") for text in texts], dtype=np.bytes_)


def _as_text(values: NDArray[Any]) -> tuple[str, ...]:
    return tuple(value.decode("utf-8", "surrogateescape") for value in values.tolist())


def _bad(url: str, what: str) -> InputError:
    return InputError(f"{shown(url)} {what}: name a file that evaluate --probabilities wrote")
