"""One tar: where its samples lie, found in one pass over its bytes; and the key in a piece of it.

Members are grouped as webdataset groups them: neighbours whose path is the same up to the first dot of the file name
are one sample. What webdataset passes over in silence (a cut tar, a damaged header, a sample without its label) is
refused.
"""

import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from shards.errors import InputError
from shards.index import SAMPLE_DTYPE, ShardRow, key_digest

BLOCK_BYTES = 512
END_BYTES = 2 * BLOCK_BYTES
PICTURE_SUFFIXES = ("jpg", "jpeg")
MAX_LABEL_BYTES = 64

See = Callable[[str, bytes], None]  # key and picture


@dataclass(frozen=True)
class TarScan:
    """What one pass over a tar found: its row, a row of SAMPLE_DTYPE a sample, and the samples' keys in that order."""

    row: ShardRow
    samples: NDArray[np.void]
    keys: tuple[str, ...]


@dataclass
class _Group:
    """The members of one sample as they come by: (head, offset, length, crc) of the picture, and the label."""

    key: str
    picture: tuple[int, int, int, int] | None = None
    label: int | None = None
    suffixes: set[str] = field(default_factory=set)


class _Watched:
    """A stream that hashes and counts what is read from it, and remembers where the last byte that is not 0 ended."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.hash = hashlib.sha256()
        self.count = 0
        self.data_end = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.hash.update(data)
        body = len(data.rstrip(b"\0"))
        if body:
            self.data_end = self.count + body
        self.count += len(data)
        return data


def split_member_name(name: str) -> tuple[str, str] | None:
    """(key, suffix in lower case) of a member as webdataset cuts it: the path up to the first dot of the file name."""
    match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)
    return (match.group(1), match.group(2).lower()) if match else None


def scan_tar(stream: BinaryIO, name: str, shard: int, shown: str, see: See | None = None) -> TarScan:
    """Find the samples of one tar in one pass over `stream`.

    `name` and `shard` go into the rows, `shown` into messages; `see` is shown each picture on the way. InputError,
    naming the tar and the member, for links, devices, names that leave the folder, samples without picture or label,
    labels that are no number, damage, a cut.
    """
    watched = _Watched(stream)
    groups = []
    try:
        with tarfile.open(fileobj=cast(BinaryIO, watched), mode="r|", bufsize=2**20) as tar:
            for group in _groups(tar, shown, see):
                groups.append(group)
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError) as exc:
        raise InputError(f"{shown} is cut, damaged or no plain tar ({exc}): bring a whole one") from exc
    while watched.read(2**20):
        pass
    if watched.data_end > end:
        raise InputError(f"{shown} has a damaged header at byte {end}, or another archive behind it: bring a whole one")
    if watched.count - end < END_BYTES:
        raise InputError(f"{shown} is cut at byte {watched.count}, it lacks the end blocks of a tar: bring a whole one")
    rows = [(shard, *_whole_sample(group, shown)) for group in groups if _is_sample(group)]
    if not rows:
        raise InputError(f"{shown} holds no sample: expected members KEY.jpg and KEY.cls")
    keys = tuple(group.key for group in groups if _is_sample(group))
    digest = sum(key_digest(key) for key in keys) % 2**64
    row = ShardRow(name, watched.count, len(rows), watched.hash.hexdigest(), digest)
    return TarScan(row, np.array(rows, dtype=SAMPLE_DTYPE), keys)


def _groups(tar: tarfile.TarFile, shown: str, see: See | None) -> Iterator[_Group]:
    group: _Group | None = None
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # else a big tar's members pile up in memory
        _check_member(member, shown)
        parts = split_member_name(member.name)
        # Names like __x__ are webdataset's own notes.
        if not member.isreg() or parts is None or re.match(r"__[^/]*__($|/)", member.name):
            continue
        key, suffix = parts
        if group is None or group.key != key:
            if group is not None:
                yield group
            group = _Group(key)
        _add(group, suffix, tar, member, shown, see)
    if group is not None:
        yield group


def _check_member(member: tarfile.TarInfo, shown: str) -> None:
    where = f"{shown} holds {member.name!r}, "
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise InputError(f"{where}a name that leaves the folder: repack the tar with relative names")
    if member.issym() or member.islnk():
        raise InputError(f"{where}a link to {member.linkname!r}: repack the tar with the files themselves")
    if member.issparse() or not (member.isreg() or member.isdir()):
        raise InputError(f"{where}which is no plain file (a device or a special member): repack the tar without it")


def _add(
    group: _Group, suffix: str, tar: tarfile.TarFile, member: tarfile.TarInfo, shown: str, see: See | None
) -> None:
    where = f"{shown} holds {member.name!r}, "
    if suffix in group.suffixes or (suffix in PICTURE_SUFFIXES and group.picture is not None):
        raise InputError(f"{where}the second such member of the key {group.key!r}: keep one")
    group.suffixes.add(suffix)
    if suffix in PICTURE_SUFFIXES:
        if member.size >= 2**32:
            raise InputError(f"{where}{member.size} bytes long: a picture must be below 4 GiB")
        picture = cast(Any, tar.extractfile(member)).read()
        if see is not None:
            see(group.key, picture)
        crc = crc32(picture)
        group.picture = (member.offset_data - member.offset, member.offset_data, member.size, crc)
    elif suffix == "cls":
        text = b""
        if member.size <= MAX_LABEL_BYTES:
            text = cast(Any, tar.extractfile(member)).read()
        match = re.fullmatch(rb"\s*([0-9]{1,10})\s*", text)
        if match is None or int(match.group(1)) >= 2**31:
            value = text.decode("utf-8", "replace") if text else f"{member.size} bytes"
            raise InputError(f"{where}whose content {value!r} is no class: expected a decimal number from 0 up")
        group.label = int(match.group(1))


def _is_sample(group: _Group) -> bool:
    """Whether a group is meant as a sample; a lone README.txt is not."""
    return bool(group.suffixes & {*PICTURE_SUFFIXES, "cls", "json"})


def _whole_sample(group: _Group, shown: str) -> tuple[int, int, int, int, int]:
    if group.picture is None or group.label is None:
        lacking = ".jpg" if group.picture is None else ".cls"
        there = ", ".join(sorted(group.suffixes))
        raise InputError(
            f"{shown} holds the sample {group.key!r} without its {lacking} beside it (there is: {there}): "
            "repack the tar with KEY.jpg and KEY.cls side by side"
        )
    head, offset, length, crc = group.picture
    return head, offset, length, group.label, crc


def picture_key(head: bytes, length: int) -> str:
    """The key of the picture whose header blocks are `head` (long-name blocks included) and whose size is `length`.

    ValueError where the blocks are no header, or the header is not that of such a picture.
    """
    try:
        if len(head) == BLOCK_BYTES:
            member = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        else:
            with tarfile.open(fileobj=io.BytesIO(head), mode="r:") as tar:
                member = cast(tarfile.TarInfo, tar.next())
    except tarfile.TarError as exc:
        raise ValueError(f"no tar header ({exc})") from exc
    parts = split_member_name(member.name)
    if parts is None or parts[1] not in PICTURE_SUFFIXES or not member.isreg() or member.size != length:
        raise ValueError(f"the header of {member.name!r} with {member.size} bytes, not of a picture with {length}")
    return parts[0]
