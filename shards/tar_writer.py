"""Writing one tar of a shard set: the very bytes of webdataset's TarWriter, and where in them each sample lies.

Made here because importing webdataset imports torch, in each of many processes; and because what is written is hashed
and located as it goes, without reading it again.
"""

import hashlib
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from typing import BinaryIO

import numpy as np
from isal.isal_zlib import crc32

from shards import storage
from shards.errors import InputError
from shards.index import SAMPLE_DTYPE, ShardRow, key_digest
from shards.sources.source import SourceSample
from shards.storage import shown
from shards.tars import BLOCK_BYTES, END_BYTES, TarScan

MAX_PICTURE_BYTES = 2**32


def write_tar(folder: str, name: str, shard: int, samples: Sequence[SourceSample]) -> TarScan:
    """Write the tar `name`, number `shard` of its set, into `folder`; it appears only whole.

    InputError, and nothing overwritten, where that name has other bytes already; and whatever loading a sample raises.
    """
    url = storage.join(folder, name)
    storage.remove_leftovers(url)
    scans: list[TarScan] = []

    def write(file: BinaryIO) -> None:
        scans.append(_fill(file, name, shard, samples))
        if storage.exists(url) and sha256_of(url) != scans[0].row.sha256:
            raise InputError(f"{shown(url)} is there already with other bytes: name another folder, or take it away")

    storage.write_atomic(url, write)
    return scans[0]


def sha256_of(url: str) -> str:
    """sha256 (hex) of a file. StorageFault where it cannot be read."""
    with storage.open_read(url) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fill(file: BinaryIO, name: str, shard: int, samples: Sequence[SourceSample]) -> TarScan:
    rows: list[tuple[int, ...]] = []  # of SAMPLE_DTYPE
    digest, at = hashlib.sha256(), 0
    for sample in samples:
        picture = sample.load()
        if len(picture) >= MAX_PICTURE_BYTES:
            raise InputError(f"the picture {sample.key!r} has {len(picture)} bytes: a picture must be below 4 GiB")
        label = b"%d" % sample.label
        label_head, head = _header(f"{sample.key}.cls", len(label)), _header(f"{sample.key}.jpg", len(picture))
        before, behind = b"".join((label_head, label, _padding(len(label)), head)), _padding(len(picture))
        rows.append((shard, len(head), at + len(before), len(picture), sample.label, crc32(picture)))
        for piece in (before, picture, behind):
            digest.update(piece)
            file.write(piece)
            at += len(piece)
    end = bytes(END_BYTES + -(at + END_BYTES) % tarfile.RECORDSIZE)
    digest.update(end)
    file.write(end)
    keys = tuple(sample.key for sample in samples)
    keys_digest = sum(key_digest(key) for key in keys) % 2**64
    row = ShardRow(name, at + len(end), len(keys), digest.hexdigest(), keys_digest)
    return TarScan(row, np.array(rows, SAMPLE_DTYPE), keys)


def _header(name: str, size: int) -> bytes:
    """The header of a member as tarfile makes it: one block, or more where its name is long or not ASCII."""
    if not name.isascii() or len(name) > 100:
        return _header_of_tarfile(name, size)
    before, between, behind, constant = _blank()
    field, digits = name.encode(), b"%011o" % size
    checksum = b"%06o" % (constant + sum(field) + sum(digits))
    return b"".join((field.ljust(100, b"\0"), before, digits, between, checksum, behind))


@lru_cache(maxsize=1)
def _blank() -> tuple[bytes, bytes, bytes, int]:
    """What is the same in every plain header: the bytes around size and checksum, and their part of the checksum.

    A header so made takes a tenth of the time, of which there is one a picture and one a label.
    """
    blank = _header_of_tarfile("", 0)
    before, between, behind = blank[100:124], blank[135:148], blank[154:]
    return before, between, behind, sum(before) + sum(between) + 6 * ord(" ") + sum(behind) - behind[0] + ord(" ")


def _header_of_tarfile(name: str, size: int) -> bytes:
    # Time, user, group and mode are fixed so that the bytes depend on the samples alone.
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime, member.uname, member.gname = size, 0o644, 0, "root", "root"
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK_BYTES)
