"""Files written past the page cache hold what was given, whatever the file system can do."""

import errno
import os
import random
from pathlib import Path

import pytest

from shards import direct
from shards.direct import BUFFER_BYTES, DirectFile


def written(path: Path, pieces: list[bytes]) -> bytes:
    with path.open("xb", buffering=0) as file:
        to = DirectFile(file.fileno())
        for piece in pieces:
            assert to.write(piece) == len(piece)
        to.flush()
    return path.read_bytes()


@pytest.mark.parametrize(
    "size", [0, 1, 4095, BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 2 * BUFFER_BYTES + 10240]
)
def test_pieces_of_any_size_come_out_as_they_went_in(tmp_path: Path, size: int) -> None:
    generator = random.Random(size)
    data = generator.randbytes(size)
    cuts = sorted(generator.randrange(size + 1) for _ in range(7))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
    assert written(tmp_path / "pieces", pieces) == data
    assert written(tmp_path / "whole", [data]) == data


def test_the_file_system_is_asked_to_go_past_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("this system has no O_DIRECT")
    asked: list[bool] = []
    real = direct._set_direct

    def note(file: int, on: bool) -> bool:
        asked.append(on)
        return real(file, on)

    monkeypatch.setattr(direct, "_set_direct", note)
    written(tmp_path / "file", [bytes(BUFFER_BYTES + 1)])
    assert asked[0] is True


@pytest.mark.parametrize("taken", [0, 1, 512 * 3 + 1])
def test_a_disk_that_refuses_midway_is_written_to_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    real, direct_now, refused = os.write, [False], [0]

    def set_direct(file: int, on: bool) -> bool:
        direct_now[0] = on
        return on

    def write(file: int, data: memoryview) -> int:
        if not direct_now[0]:
            return real(file, data)
        refused[0] += 1
        if taken and refused[0] == 1:
            return real(file, data[:taken])  # less than was given, so that the rest lies askew
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(direct, "_set_direct", set_direct)
    monkeypatch.setattr(os, "write", write)
    data = random.Random(0).randbytes(2 * BUFFER_BYTES + 77)
    assert written(tmp_path / "file", [data]) == data
    assert refused[0] == (2 if taken else 1)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(file: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path / "file", [b"x" * (BUFFER_BYTES + 1)])
