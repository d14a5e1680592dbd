"""Crops of pictures: bit-equal where nothing is resampled, close to plain arithmetic where it is; faults are faults."""

import io
import struct
import warnings
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dist_alexnet.data.crop import square_box
from dist_alexnet.data.decode import DecodeFault, decode_crop, decoder_identity


def smooth(width: int, height: int) -> Image.Image:
    """A picture without sharp edges, other in every corner and colour."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 120 * np.sin(x / 9 + k) * np.cos(y / (7 + k) + k) for k in range(3)]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def coded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cut(picture: bytes, left: int, top: int, resize: int, image_size: int) -> np.ndarray:
    """The crop at (left, top) of the centre square at `resize`."""
    box_of = partial(square_box, left=left, top=top, resize=resize, image_size=image_size)
    return decode_crop(picture, box_of, image_size)


def triangle_rows(pixels: np.ndarray, start: float, scale: float, outputs: int) -> np.ndarray:
    """Bilinear resampling of dim 0 with antialiasing, by its definition: a triangle as wide as an output pixel."""
    reach = max(1.0, scale)
    rows = []
    for output in range(outputs):
        centre = start + (output + 0.5) * scale
        inside = np.arange(max(0, int(centre - reach + 0.5)), min(len(pixels), int(centre + reach + 0.5)))
        weights = np.maximum(0, 1 - np.abs((inside + 0.5 - centre) / reach))
        rows.append(np.tensordot(weights / weights.sum(), pixels[inside], 1))
    return np.stack(rows)


def by_definition(image: Image.Image, left: int, top: int, resize: int, image_size: int) -> np.ndarray:
    pixels = np.asarray(image.convert("RGB")).astype(float)
    height, width, _ = pixels.shape
    short = min(width, height)
    scale = short / resize
    rows = triangle_rows(pixels, (height - short) // 2 + top * scale, scale, image_size)
    both = triangle_rows(rows.transpose(1, 0, 2), (width - short) // 2 + left * scale, scale, image_size)
    return both.transpose(2, 1, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(40, 40), (60, 40), (40, 52), (40, 53)])
def test_a_picture_stored_at_resize_is_cut_and_not_resampled(kind: str, size: tuple[int, int]) -> None:
    picture = coded(noise(*size), kind)
    with Image.open(io.BytesIO(picture)) as image:
        pixels = np.asarray(image.convert("RGB"))
    x, y = (size[0] - 40) // 2, (size[1] - 40) // 2
    for left, top in ((0, 0), (8, 0), (3, 5), (8, 8)):
        crop = cut(picture, left, top, 40, 32)
        assert crop.dtype == np.uint8
        assert crop.flags.c_contiguous
        assert np.array_equal(crop, pixels[y + top : y + top + 32, x + left : x + left + 32].transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(80, 80), (97, 61), (61, 140), (33, 29), (41, 40), (250, 111)])
@pytest.mark.parametrize("corner", [(0, 0), (8, 8), (2, 7)])
def test_any_other_is_resampled_once(size: tuple[int, int], corner: tuple[int, int]) -> None:
    for image in (smooth(*size), noise(*size)):
        crop = cut(coded(image), *corner, 40, 32)
        expected = by_definition(image, *corner, 40, 32)
        assert np.abs(crop - expected).max() < 1.6  # Pillow rounds after each of its two passes


def test_every_crop_of_a_resampled_picture_lines_up() -> None:
    """Crops one step apart show the same picture one pixel further."""
    picture = coded(smooth(90, 80))
    here, there = cut(picture, 2, 3, 40, 32).astype(int), cut(picture, 3, 3, 40, 32).astype(int)
    assert np.abs(here[:, :, 1:] - there[:, :, :-1]).max() <= 1


@pytest.mark.parametrize("resize", [14, 30, 98, 100, 232, 300])
def test_no_size_is_a_fault(resize: int) -> None:
    """(size / resize) * resize is not always size: a box must not begin before the picture for that."""
    image_size = resize - 3
    shorts = [short for short in range(8, 400) if short / resize * resize != short][:6]
    assert shorts
    for short in shorts:
        for size in ((short, short), (short, short + 9), (short + 9, short)):
            for corner in ((0, 0), (3, 3)):
                crop = cut(coded(Image.new("RGB", size, (9, 8, 7))), *corner, resize, image_size)
                assert crop.shape == (3, image_size, image_size)
                assert (crop == np.array([9, 8, 7])[:, None, None]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2), (2000, 5)])
def test_tiny_pictures_are_pictures(size: tuple[int, int]) -> None:
    assert cut(coded(Image.new("RGB", size, (1, 2, 3))), 8, 0, 40, 32).mean((1, 2)).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "JPEG"),
        ("L", "PNG"),
        ("1", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("CMYK", "JPEG"),
        ("RGB", "BMP"),
        ("RGB", "WEBP"),
    ],
)
def test_every_kind_becomes_rgb(mode: str, kind: str) -> None:
    picture = coded(smooth(40, 40).convert(mode), kind)
    with Image.open(io.BytesIO(picture)) as image:
        assert image.mode == mode
        pixels = np.asarray(image.convert("RGB"))
    crop = cut(picture, 4, 4, 40, 32)
    assert np.array_equal(crop, pixels[4:36, 4:36].transpose(2, 0, 1))
    if mode in ("L", "1", "LA"):
        assert np.array_equal(crop[0], crop[1])
    elif mode != "P":
        true = np.asarray(smooth(40, 40))[4:36, 4:36].transpose(2, 0, 1)
        assert np.abs(crop.astype(int) - true).mean() < 12


BROKEN = {
    "empty": b"",
    "garbage": bytes(range(256)) * 20,
    "text": b"<html><body>404</body></html>",
    "head of a jpeg": coded(noise(40, 40), "JPEG")[:200],
    "half a jpeg": coded(noise(200, 200), "JPEG")[:9000],
    "half a png": coded(noise(40, 40))[:2000],
    "png with a broken chunk": coded(noise(40, 40)).replace(b"IDAT", b"XDAT"),
    "soi and zeros": b"\xff\xd8\xff\xe0" + bytes(500),
    "png with an empty profile": (
        lambda png: png[:-12] + struct.pack(">I4sI", 0, b"iCCP", zlib.crc32(b"iCCP")) + png[-12:]
    )(coded(noise(40, 40))),
    "tiff": coded(noise(40, 40), "TIFF"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_decode_is_a_fault(name: str) -> None:
    with pytest.raises(DecodeFault):
        cut(BROKEN[name], 0, 0, 40, 32)


@pytest.mark.parametrize("name", BROKEN)
def test_a_fault_has_the_same_words_in_every_process(name: str) -> None:
    with pytest.raises(DecodeFault) as caught:
        cut(BROKEN[name], 0, 0, 40, 32)
    assert " at 0x" not in str(caught.value)


def test_a_picture_too_large_to_be_one_is_a_fault() -> None:
    bomb = coded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(DecodeFault, match="DecompressionBomb"):
        cut(bomb, 0, 0, 40, 32)


def test_no_picture_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands EPS to Ghostscript, a program that does what the file says."""
    started = tmp_path / "started"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {started}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    postscript = coded(noise(40, 40), "EPS")
    with pytest.raises(DecodeFault):
        cut(postscript, 0, 0, 40, 32)
    assert not started.exists()


def test_bytes_that_were_changed_decode_or_are_faults() -> None:
    """Whatever Pillow trips over, nothing but a DecodeFault comes out."""
    random = np.random.default_rng(0)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # sizes that were changed, too
    faults = 0
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP"):
        good = np.frombuffer(coded(noise(40, 40), kind), dtype=np.uint8)
        for _ in range(150):
            bad = good.copy()
            bad[random.integers(0, min(len(bad), 300), 4)] = random.integers(0, 256, 4)
            try:
                cut(bad[: random.integers(10, len(bad) + 1)].tobytes(), 0, 0, 40, 32)
            except DecodeFault:
                faults += 1
    assert faults > 300


def test_the_decoder_has_a_name() -> None:
    assert decoder_identity().startswith("pillow/libjpeg")
