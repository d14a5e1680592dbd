"""CIFAR-10 and CIFAR-100 as they are published, in their binary versions."""

import re
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.sources.archive import unpacked
from shards.sources.picture import png
from shards.sources.source import ClassInfo, SourceSample
from shards.storage import shown

SIDE = 32
PIXEL_BYTES = 3 * SIDE * SIDE


@dataclass(frozen=True)
class CifarSource:
    """cifar-10-binary.tar.gz or cifar-100-binary.tar.gz; splits `train` and `val` (the published test set).

    Pictures become PNG, which keeps every pixel as published. Labels are the published numbers (of CIFAR-100 the fine
    ones). Keys are `cifar10-train-00000` and so on, in the published order. The archives of pickles ("python version")
    are refused: opening a pickle can run anything.
    """

    archive: str
    recipe = "cifar, png"

    @property
    def classes(self) -> tuple[str, ...]:
        """The published names; of CIFAR-100 the fine ones."""
        names = "batches.meta.txt" if self._of_ten else "fine_label_names.txt"
        return self._names(names)

    @property
    def class_info(self) -> ClassInfo | None:
        """Of CIFAR-100, the coarse class that each class belongs to; of CIFAR-10 nothing."""
        if self._of_ten:
            return None
        coarse = self._names("coarse_label_names.txt")
        found: dict[int, int] = {}
        for name in ("train.bin", "test.bin"):
            for first, fine in np.unique(self._records(name)[:, :2], axis=0).tolist():
                if first >= len(coarse) or found.setdefault(fine, first) != first:
                    raise self._bad(f"puts class {fine} into two coarse classes, or one without a name")
        return tuple({"coarse": coarse[found[fine]] if fine in found else None} for fine in range(len(self.classes)))

    def samples(self, split: str) -> list[SourceSample]:
        """The pictures of `train` or `val`. InputError for another split, or an archive of another shape."""
        if split not in ("train", "val"):
            raise InputError(f"CIFAR has no split {split!r}: expected train or val")
        if self._of_ten:
            batches = [name for name in self._files if re.fullmatch(r"data_batch_\d+\.bin", name)]
            batches.sort(key=lambda name: int(name[len("data_batch_") : -len(".bin")]))
            names = batches if split == "train" else ["test_batch.bin"]
        else:
            names = ["train.bin" if split == "train" else "test.bin"]
        records = np.concatenate([self._records(name) for name in names]) if names else np.zeros((0, 2), np.uint8)
        if not len(records):
            raise self._bad(f"holds no pictures of split {split}")
        labels = records[:, -PIXEL_BYTES - 1]
        if int(labels.max()) >= len(self.classes):
            raise self._bad(f"has a picture of class {labels.max()} where there are {len(self.classes)} classes")
        prefix = f"{'cifar10' if self._of_ten else 'cifar100'}-{split}"
        return [
            SourceSample(f"{prefix}-{i:05d}", label, partial(_picture, records[i, -PIXEL_BYTES:]), PIXEL_BYTES)
            for i, label in enumerate(labels.tolist())
        ]

    @cached_property
    def _files(self) -> dict[str, bytes]:
        """File name (without folders) -> content, of those that matter."""
        found: dict[str, bytes] = {}
        for path, data in unpacked(self.archive).items():
            if re.match(r"(\./)?cifar-(10-batches-py|100-python)/", path):
                raise InputError(
                    f"{shown(self.archive)} is the version of pickles, which are never opened: take the binary one, "
                    "cifar-10-binary.tar.gz or cifar-100-binary.tar.gz"
                )
            found[path.rpartition("/")[2]] = data
        if not {"batches.meta.txt", "fine_label_names.txt"} & set(found):
            raise self._bad("holds neither batches.meta.txt nor fine_label_names.txt")
        return found

    @property
    def _of_ten(self) -> bool:
        return "batches.meta.txt" in self._files

    def _names(self, name: str) -> tuple[str, ...]:
        if name not in self._files:
            raise self._bad(f"holds no {name}")
        return tuple(line.strip() for line in self._files[name].decode("utf-8", "replace").splitlines() if line.strip())

    def _records(self, name: str) -> NDArray[Any]:
        """Shape (pictures, labels + PIXEL_BYTES), uint8; CIFAR-100 has two labels a picture, coarse and fine."""
        width = (1 if self._of_ten else 2) + PIXEL_BYTES
        data = self._files.get(name)
        if not data or len(data) % width:
            raise self._bad(f"has a {name} of {len(data or b'')} bytes where a multiple of {width} is expected")
        return np.frombuffer(data, np.uint8).reshape(-1, width)

    def _bad(self, what: str) -> InputError:
        return InputError(
            f"the archive {shown(self.archive)} {what}: bring cifar-10-binary.tar.gz or cifar-100-binary.tar.gz as it "
            "was published"
        )


def _picture(pixels: NDArray[np.uint8]) -> bytes:
    """PNG of one record's pixels: the red plane, the green, the blue, each row by row."""
    return png(np.ascontiguousarray(pixels.reshape(3, SIDE, SIDE).transpose(1, 2, 0)))
