import io

import numpy as np
import pytest
from PIL import Image

from shards.errors import InputError
from shards.sources.picture import resized
from shards.sources.resized import ResizedSource
from tests.shards.archives import picture
from tests.shards.pictures import NoiseSource, jpeg


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return image


@pytest.mark.parametrize(
    ("size", "expected"),
    [((500, 375), (341, 256)), ((375, 500), (256, 341)), ((300, 300), (256, 256)), ((100, 80), (320, 256)),
     ((256, 400), (256, 400)), ((1000, 3), None)],
)  # fmt: skip
def test_the_shorter_side(size: tuple[int, int], expected: tuple[int, int] | None) -> None:
    data = picture(*size, seed=1)
    if expected is None:  # longer than a JPEG can be
        with pytest.raises(InputError, match="the picture 'x' cannot be read"):
            resized(data, 256, False, 95, "'x'")
        return
    assert opened(resized(data, 256, False, 95, "'x'")).size == expected
    assert opened(resized(data, 256, True, 95, "'x'")).size == (256, 256)


def test_shrinking_averages_areas_and_the_square_is_the_centre() -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 200  # the centre square of 80 x 40
    pixels[::2, 20:60, 0] = 0  # averaged away by area: 100
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    square = np.asarray(opened(resized(out.getvalue(), 10, True, 100, "'x'")))
    assert np.abs(square - np.array([100, 200, 200])).max() <= 3
    short = np.asarray(opened(resized(out.getvalue(), 20, False, 100, "'x'")))
    assert short.shape == (20, 40, 3)
    assert short[:, :8].max() <= 12  # black beside the centre


def test_what_has_its_size_already_keeps_its_bytes() -> None:
    data = jpeg(3, side=16)
    assert resized(data, 16, False, 50, "'x'") == data
    assert resized(data, 16, True, 50, "'x'") == data
    wide = picture(32, 16)
    assert resized(wide, 16, False, 50, "'x'") == wide
    assert opened(resized(wide, 16, True, 50, "'x'")).size == (16, 16)
    for kind, mode in (("PNG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK")):
        other = picture(16, 16, kind, mode)
        assert resized(other, 16, False, 95, "'x'") != other
        assert opened(resized(other, 16, False, 95, "'x'")).size == (16, 16)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    out = io.BytesIO()
    Image.open(io.BytesIO(picture(30, 20))).convert(mode).save(out, "PNG")
    assert opened(resized(out.getvalue(), 8, False, 95, "'x'")).size == (12, 8)


@pytest.mark.parametrize("data", [b"", b"no picture", jpeg(1, side=64)[:-700], b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_does_not_decode_is_named(data: bytes) -> None:
    with pytest.raises(InputError, match="the picture 'n01_5' cannot be read"):
        resized(data, 8, False, 95, "'n01_5'")


def test_quality_and_size_are_checked_and_part_of_the_recipe() -> None:
    for side, quality, says in ((0, 95, "0 pixels"), (70000, 95, "70000 pixels"), (8, 0, "is 0"), (8, 101, "is 101")):
        with pytest.raises(InputError, match=says):
            ResizedSource(NoiseSource(3), side, quality=quality)
    ways = ((8, False, 95), (9, False, 95), (8, True, 95), (8, False, 90))
    recipes = {ResizedSource(NoiseSource(3), *way).recipe for way in ways}
    assert len(recipes) == 4
    large = picture(64, 64)
    assert len(resized(large, 48, False, 95, "")) > len(resized(large, 48, False, 30, ""))
