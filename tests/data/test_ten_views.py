"""Ten views: where they are cut, and that a picture decoded once gives the pixels of ten decodings."""

import io
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from dist_alexnet.config import Config, Data
from dist_alexnet.data import decode
from dist_alexnet.data.decode import DecodeFault, decode_crop
from dist_alexnet.data.loader import Share, decode_views, evaluation_batches
from dist_alexnet.data.view import evaluation_views, ten_views
from shards.build import build_shards
from shards.index import read_index
from tests.data.test_decode_fast import jpeg, scene
from tests.ranks.pictures import Noise

DATA = Data(resize=256, image_size=224)
TEN = [(0, 0), (32, 0), (0, 32), (32, 32), (16, 16)] * 2  # (left, top)


def test_where_they_are_cut() -> None:
    views = ten_views(3, DATA)
    for image in range(3):
        own = slice(10 * image, 10 * image + 10)
        assert list(zip(views.left[own].tolist(), views.top[own].tolist(), strict=True)) == TEN
        assert views.mirror[own].tolist() == [False] * 5 + [True] * 5
    assert not views.noise.any()
    assert (views.divisor == 1).all()
    assert views.box(11, 300, 256) == (22 + 32, 0, 22 + 32 + 224, 224)  # the second of image 1, in its centre square


@pytest.mark.parametrize("decoder", ["pillow", "auto"])
@pytest.mark.parametrize(
    "picture",
    [
        jpeg(scene(500, 375)),
        jpeg(scene(256, 256)),  # cut out, not resampled
        jpeg(scene(301, 263), subsampling=0, progressive=True),
        jpeg(scene(260, 400).convert("L")),
        jpeg(scene(300, 280).convert("CMYK")),  # left to Pillow
    ],
    ids=["photograph", "256", "4:4:4", "grey", "cmyk"],
)
def test_decoded_once_is_as_decoded_for_each(picture: bytes, decoder: Literal["auto", "pillow"]) -> None:
    """By the library that decodes once, and with Pillow alone; against single crops by whatever is fastest here."""
    data, views = DATA.model_copy(update={"decoder": decoder}), ten_views(2, DATA)
    out = np.zeros((10, 3, 224, 224), dtype=np.uint8)
    decode_views(picture, views, 10, data, out)
    for row in range(10):
        assert np.array_equal(out[row], decode_crop(picture, partial(views.box, row), 224, "auto"))
    assert len({crop.tobytes() for crop in out}) == 5


def test_a_png_and_a_torn_file() -> None:
    buffer = io.BytesIO()
    scene(300, 256).save(buffer, "PNG")
    out = np.zeros((10, 3, 224, 224), dtype=np.uint8)
    decode_views(buffer.getvalue(), ten_views(1, DATA), 0, DATA, out)
    assert np.array_equal(out[4].transpose(1, 2, 0), np.asarray(scene(300, 256))[16:240, 38:262])
    for torn in (jpeg(scene(300, 256))[:2000], b"no picture"):
        with pytest.raises(DecodeFault):
            decode_views(torn, ten_views(1, DATA), 0, DATA, out)


def test_a_picture_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    real = Image.open
    monkeypatch.setattr(decode.Image, "open", lambda *given, **named: opened.append(given) or real(*given, **named))
    data = DATA.model_copy(update={"decoder": "pillow"})
    decode_views(jpeg(scene(300, 256)), ten_views(1, data), 0, data, np.zeros((10, 3, 224, 224), dtype=np.uint8))
    assert len(opened) == 1


@pytest.mark.parametrize("parts", [1, 3])
def test_batches_hold_ten_rows_of_each_image(tmp_path: Path, parts: int) -> None:
    """Each image once, its rows next to each other; padding and a torn picture have weight 0 in all of theirs."""
    build_shards(Noise(11), "val", str(tmp_path), samples_per_shard=10)
    index = read_index(str(tmp_path / "val.index.json"))
    config = Config.model_validate(
        {"data": {"resize": 72, "image_size": 64, "workers": 0}, "evaluate": {"batch_size": 50}}
    )
    seen: list[str] = []
    for rank in range(parts):
        for batch in evaluation_batches(index, config, Share(rank, parts), False, views=10):
            assert len(batch.pixels_b3SS) == (50 if parts == 1 else 20)  # 5 images, or 2 of the 6 of three ranks
            rows = batch.position_b.view(-1, 10)
            assert (rows == rows[:, :1]).all()
            assert (batch.weight_b.view(-1, 10) == batch.weight_b.view(-1, 10)[:, :1]).all()
            assert torch.equal(batch.mirror_b.view(-1, 10)[0], torch.arange(10) >= 5)
            centre = evaluation_views(1, config.data, 1)
            assert (centre.left[0], centre.top[0]) == (4, 4)
            real = (rows[:, 0] >= 0).sum()
            assert len(batch.keys) == real
            assert (batch.weight_b.view(-1, 10)[:, 0] == 0).sum() == len(rows) - real + len(batch.faults)
            seen += batch.keys
    assert sorted(seen) == [f"val-{number:04d}" for number in range(37)]
