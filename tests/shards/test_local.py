"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from shards import local


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file"
    local.write(path, b"first")
    local.write(path, b"second")
    assert path.read_bytes() == b"second"
    with pytest.raises(TypeError):
        local.write(path, None)  # type: ignore[arg-type]
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_only_one_creates_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    assert local.create(path, b"first")
    assert not local.create(path, b"second")
    assert path.read_bytes() == b"first"

    def refused(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(local.os, "link", refused)
    assert not local.create(path, b"third")
    assert local.create(tmp_path / "other", b"fourth")
    assert (path.read_bytes(), (tmp_path / "other").read_bytes()) == (b"first", b"fourth")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "other"]
