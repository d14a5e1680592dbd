"""A folder with one folder of pictures a class: SRC/<class>/**/*.jpg (or .png, ...)."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shards.errors import InputError
from shards.sources.picture import JPEG_QUALITY, as_jpeg
from shards.sources.source import SourceSample

PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)


@dataclass(frozen=True)
class FolderSource:
    """Classes are the folders of `folder` by sorted name; pictures may lie deeper inside them.

    JPEG files are kept byte for byte; other formats are encoded again by Pillow as RGB JPEG of quality 95. Files with
    other endings, and hidden ones, are passed over. A key is `<class>_<file name>` with whatever is no letter, digit,
    `-` or `_` made `_` (just the file name where it begins with the class, as in ImageNet); keys that so become equal
    get a piece of the sha256 of their path. Every split has all the pictures: one folder is one split.
    """

    folder: str

    @property
    def recipe(self) -> str:
        """How other formats than JPEG are encoded."""
        return f"folder, jpeg {JPEG_QUALITY}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the class folders, sorted. InputError where there is none."""
        root = Path(self.folder).expanduser()
        if not root.is_dir():
            raise InputError(f"the picture folder {self.folder!r} is not there: name a folder with one folder a class")
        names = tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")))
        if not names:
            raise InputError(f"the picture folder {self.folder!r} has no folders in it: expected one a class")
        return names

    def samples(self, split: str) -> list[SourceSample]:
        """All pictures, by class and path. InputError for a class without pictures."""
        root = Path(self.folder).expanduser()
        found = [(label, path) for label, name in enumerate(self.classes) for path in _pictures(root / name)]
        keys = [_key(path.relative_to(root)) for _, path in found]
        often = Counter(keys)
        for i, (_, path) in enumerate(found):
            if often[keys[i]] > 1:
                keys[i] += "-" + hashlib.sha256(str(path.relative_to(root)).encode("utf-8", "replace")).hexdigest()[:12]
        return [
            SourceSample(key, label, partial(jpeg_bytes, path), path.stat().st_size)
            for key, (label, path) in zip(keys, found, strict=True)
        ]


def jpeg_bytes(path: Path) -> bytes:
    """The picture of a file as JPEG bytes. InputError where it cannot be read whole."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise InputError(f"the picture {str(path)!r} cannot be read ({exc.strerror}): mend it or take it out") from exc
    return as_jpeg(data, repr(str(path)))


def _pictures(folder: Path) -> list[Path]:
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise InputError(f"the class folder {str(folder)!r} holds no picture: fill it or take it out")
    return found


def _key(path: Path) -> str:
    name, *inner = path.with_suffix("").parts
    rest = "_".join(inner)
    return re.sub(r"[^\w-]", "_", rest if rest.startswith(name + "_") else f"{name}_{rest}")
