"""A labelled set cut from photographs: no pixel is in both parts, the same files give the same crops."""

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.cut_photographs import crops, cut, photographs

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs whose red says the column of a pixel, a copy of one, and one with nothing on it."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(2):
        pixels = np.zeros((300, 500, 3), dtype=np.uint8)
        pixels[:, :, 0] = (np.arange(500) / 2)[None]
        pixels[:, :, 1] = (np.arange(300) * 0.8)[:, None]
        pixels[:, :, 2] = 100 * number
        Image.fromarray(pixels).save(folder / f"ramp-{number}.jpg", quality=98, subsampling=0)
    (folder / "again.jpg").write_bytes((folder / "ramp-1.jpg").read_bytes())
    Image.new("RGB", (500, 300), "white").save(folder / "plain.jpg")
    return folder


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.cut_photographs", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_equal_files_are_one_photograph(folder: Path) -> None:
    assert [file.name for file in photographs([folder])] == ["again.jpg", "plain.jpg", "ramp-0.jpg"]


def test_no_pixel_is_in_both_parts(folder: Path, tmp_path: Path) -> None:
    assert cut(folder / "ramp-0.jpg", tmp_path, 40, 40, SIDE)
    red = {
        split: np.stack([np.asarray(Image.open(file))[:, :, 0] for file in sorted((tmp_path / split).rglob("*.jpg"))])
        for split in ("train", "val")
    }
    assert red["train"].shape == red["val"].shape == (40, SIDE, SIDE)
    # pixels of the columns up to 65 % and from 70 % on, and what JPEG and resampling may add to them
    assert red["train"].max() <= 0.65 * 250 + 4
    assert red["val"].min() >= 0.70 * 250 - 4


def test_the_same_file_gives_the_same_crops(folder: Path, tmp_path: Path) -> None:
    said = [run(str(folder), "--to", str(tmp_path / to), "--train", "3", "--val", "2", "--side", "32") for to in "ab"]
    assert [one.stdout for one in said] == ["2 of 3 photographs, 3 + 2 crops of 32 x 32 each\n"] * 2
    made = [
        {
            str(file.relative_to(tmp_path / to)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in (tmp_path / to).rglob("*.jpg")
        }
        for to in "ab"
    ]
    assert made[0] == made[1]
    assert len(made[0]) == 2 * (3 + 2)


def test_a_plain_picture_gives_none() -> None:
    assert list(crops(Image.new("RGB", (500, 300), "white"), 0.0, 0.65, SIDE, random.Random(1))) == []


def test_what_cannot_be_done_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "plain.jpg").write_bytes((folder / "plain.jpg").read_bytes())
    for name in ("a/ramp.jpg", "b/ramp.jpg", "torn/ramp.jpg"):
        (tmp_path / name).parent.mkdir()
    for number, name in enumerate(("a/ramp.jpg", "b/ramp.jpg")):
        (tmp_path / name).write_bytes((folder / f"ramp-{number}.jpg").read_bytes())
    torn = tmp_path / "torn" / "ramp.jpg"
    torn.write_bytes((folder / "ramp-0.jpg").read_bytes()[:2000])
    for words, said in (
        ((str(tmp_path / "a"), str(tmp_path / "b"), "--to", str(tmp_path / "new")), "would be one class ramp: rename"),
        ((str(torn.parent), "--to", str(tmp_path / "new")), f"{torn} cannot be cut ("),
        ((str(folder), "--to", str(tmp_path)), "is there already: name another folder"),
        ((str(tmp_path / "empty"), "--to", str(tmp_path / "new")), "no .jpg files below"),
        ((str(plain), "--to", str(tmp_path / "new")), "none of the 1 photographs has enough on it"),
    ):
        done = run(*words)
        assert done.returncode == 2
        assert said in done.stderr.splitlines()[-1]
    assert not (tmp_path / "new").exists()
