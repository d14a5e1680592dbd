"""The little of MATLAB's level 5 MAT-files that a devkit needs: a struct array of words and numbers.

Format: MathWorks, "MAT-File Format", chapter 1. Files of other tools and byte orders are refused, never guessed at.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

HEADER_BYTES = 128
MAX_UNPACKED_BYTES = 2**26
MATRIX, COMPRESSED = 14, 15
STRUCT_CLASS, CHAR_CLASS, NUMBER_CLASSES = 2, 4, range(6, 16)
NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}

Record = dict[str, str | list[float] | None]


def read_structs(data: bytes, variable: str) -> list[Record]:
    """The elements of the struct array `variable`: per field a text, the numbers of a matrix, or None for anything
    else. ValueError where the bytes are no such file or lack that variable.
    """
    if len(data) < HEADER_BYTES or data[124:128] != b"\x00\x01IM":
        raise ValueError("no level 5 MAT-file of a little-endian machine")
    for kind, body in _elements(data[HEADER_BYTES:]):
        if kind == COMPRESSED:
            kind, body = next(_elements(_unpacked(body)))
        if kind != MATRIX:
            continue
        klass, name, parts = _matrix(body)
        if name == variable and klass == STRUCT_CLASS:
            return _records(parts)
    raise ValueError(f"there is no struct array {variable!r} in it")


def _unpacked(body: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(body, MAX_UNPACKED_BYTES)
    except zlib.error as exc:
        raise ValueError(str(exc)) from exc
    if not unpacker.eof:
        raise ValueError("a compressed variable is cut or too large")
    return data


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of the data elements that lie one behind the other."""
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ValueError(f"cut at byte {at}")
        kind, length = struct.unpack_from("<II", data, at)
        start = at + 8
        if kind >> 16:  # a small element: type, length and content in eight bytes
            kind, length, start = kind & 0xFFFF, kind >> 16, at + 4
            if length > 4:
                raise ValueError(f"a small element of {length} bytes at byte {at}")
        if start + length > len(data):
            raise ValueError(f"cut inside the element at byte {at}")
        yield kind, data[start : start + length]
        at = start + length
        if kind != COMPRESSED:
            at += -at % 8


def _matrix(body: bytes) -> tuple[int, str, list[tuple[int, bytes]]]:
    """(class, name, the elements that follow) of a matrix."""
    parts = list(_elements(body))
    if len(parts) < 3 or len(parts[0][1]) != 8:
        raise ValueError("a matrix without flags, size or name")
    return parts[0][1][0], parts[2][1].decode("latin-1"), parts[3:]


def _records(parts: list[tuple[int, bytes]]) -> list[Record]:
    if len(parts) < 2 or len(parts[0][1]) != 4:
        raise ValueError("a struct array without field names")
    (width,) = struct.unpack("<I", parts[0][1])
    text, cells = parts[1][1], parts[2:]
    if not width or len(text) % width:
        raise ValueError("field names of uneven length")
    names = [text[at : at + width].split(b"\0")[0].decode("latin-1") for at in range(0, len(text), width)]
    if not names or len(cells) % len(names) or any(kind != MATRIX for kind, _ in cells):
        raise ValueError(f"{len(cells)} values for {len(names)} fields")
    values = [_value(body) for _, body in cells]
    return [dict(zip(names, values[at : at + len(names)], strict=True)) for at in range(0, len(values), len(names))]


def _value(body: bytes) -> Any:
    if not body:
        return None
    klass, _, parts = _matrix(body)
    if klass not in (CHAR_CLASS, *NUMBER_CLASSES) or not parts:
        return None
    kind, content = parts[0]
    known = TEXTS if klass == CHAR_CLASS else NUMBERS
    if kind not in known:
        raise ValueError(f"values of type {kind}")
    if klass == CHAR_CLASS:
        return content.decode(known[kind])
    return [float(number) for number in np.frombuffer(content, known[kind])]
