"""The fast decoders give Pillow's pixels and Pillow's faults; what they lack is said in a sentence."""

import ctypes
import io
import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dist_alexnet.config import Config, batches_on
from dist_alexnet.data import decode, native
from dist_alexnet.data.crop import Box, BoxOf, resized_box, square_box
from dist_alexnet.data.decode import DecodeFault, Decoder, decode_crop, decoder_here
from dist_alexnet.data.loader import Share, training_batches
from dist_alexnet.data.statistics import IMAGENET
from dist_alexnet.errors import ConfigError
from shards.build import build_shards
from shards.sources.source import SourceSample

FAST: tuple[Decoder, ...] = ("simplejpeg", "region")


@pytest.fixture(params=FAST)
def fast(request: pytest.FixtureRequest) -> Decoder:
    there = find_spec("simplejpeg") if request.param == "simplejpeg" else native.region_library()
    if there is None:
        pytest.skip(f"{request.param} is not here")
    return decoder_here(request.param)  # one that is here and not equal to Pillow is no reason to skip


@pytest.fixture
def afresh() -> Iterator[None]:
    """What is there is looked for again, in the test and after it."""
    decode._fast.cache_clear()
    yield
    decode._fast.cache_clear()


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes with some noise: every coefficient of a JPEG is in use."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((pixels + random.integers(-20, 21, pixels.shape)).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def random_boxes(seed: int) -> Iterator[BoxOf]:
    random = np.random.default_rng(seed)
    while True:
        yield partial(resized_box, tries=random.random((10, 4)), scale=(0.08, 1.0), ratio=(0.75, 4 / 3))
        left, top = random.integers(0, 9, 2).tolist()
        yield partial(square_box, left=left, top=top, resize=40, image_size=32)
        yield partial(fractions, random.random(4))


def fractions(parts: np.ndarray, width: int, height: int) -> Box:
    """Any box, not on whole pixels."""
    left, right = sorted((parts[:2] * width).tolist())
    top, bottom = sorted((parts[2:] * height).tolist())
    return left, top, max(right, min(left + 0.5, width)), max(bottom, min(top + 0.5, height))


def outcome(picture: bytes, box_of: BoxOf, decoder: Decoder) -> np.ndarray | str:
    try:
        return decode_crop(picture, box_of, 32, decoder)
    except DecodeFault as fault:
        return str(fault)


KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "4:4:4": partial(jpeg, subsampling=0),
    "4:2:2": partial(jpeg, subsampling=1),
    "4:2:0": partial(jpeg, subsampling=2),
    "progressive": partial(jpeg, progressive=True),
    "progressive 4:4:4": partial(jpeg, progressive=True, subsampling=0),
    "restart markers": partial(jpeg, restart_marker_blocks=3),
    "own Huffman tables": partial(jpeg, optimize=True),
    "low quality": partial(jpeg, quality=5),
    "RGB inside": partial(jpeg, keep_rgb=True, subsampling=0),
    "grey": lambda image: jpeg(image.convert("L")),
    "a profile and a comment": partial(jpeg, icc_profile=b"\xff\xd9" * 40_000, comment=b"\xff\xd9"),
    "something behind its end": lambda image: jpeg(image) + b"\0" * 300,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_are_pillows(fast: Decoder, kind: str) -> None:
    boxes = random_boxes(len(kind))
    for number, size in enumerate([(200, 150), (97, 161), (64, 48), (33, 40), (17, 9), (1, 1), (700, 20)]):
        picture = KINDS[kind](scene(*size, number))
        swift = decode._fast(fast)
        assert swift is not None
        for box_of in (next(boxes) for _ in range(15)):
            crop = np.zeros((3, 32, 32), dtype=np.uint8)
            assert swift(picture, box_of, crop)  # by itself, and not by asking Pillow
            np.testing.assert_array_equal(crop, decode_crop(picture, box_of, 32, "pillow"))


def test_the_pixels_are_pillows_where_chroma_has_other_shapes(fast: Decoder) -> None:
    """Pillow writes none such; cameras and other programs do."""
    simplejpeg = pytest.importorskip("simplejpeg")
    pixels, boxes = np.ascontiguousarray(scene(203, 151)), random_boxes(1)
    for shape in ("440", "411", "420", "422", "444", "Gray"):
        picture = simplejpeg.encode_jpeg(pixels, 90, "RGB", shape)
        for box_of in (next(boxes) for _ in range(30)):
            np.testing.assert_array_equal(
                decode_crop(picture, box_of, 32, fast), decode_crop(picture, box_of, 32, "pillow")
            )


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("RGB", "PNG"), ("P", "GIF"), ("L", "BMP"), ("RGB", "WEBP")]
)
def test_other_kinds_are_left_to_pillow(fast: Decoder, mode: str, kind: str) -> None:
    buffer = io.BytesIO()
    scene(90, 70).convert(mode).save(buffer, kind)
    swift = decode._fast(fast)
    assert swift is not None
    for box_of in (box_of for box_of, _ in zip(random_boxes(2), range(6), strict=False)):
        assert not swift(buffer.getvalue(), box_of, np.zeros((3, 32, 32), dtype=np.uint8))
        expected = decode_crop(buffer.getvalue(), box_of, 32, "pillow")
        np.testing.assert_array_equal(decode_crop(buffer.getvalue(), box_of, 32, fast), expected)


@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "restart markers", "grey"])
def test_a_picture_cut_short_is_a_fault_wherever_the_crop_is(fast: Decoder, kind: str) -> None:
    whole = KINDS[kind](scene(120, 90))
    top = partial(square_box, left=0, top=0, resize=90, image_size=8)
    for length in range(0, len(whole) - 1, 50):
        expected = outcome(whole[:length], top, "pillow")
        assert isinstance(expected, str)
        assert outcome(whole[:length], top, fast) == expected


@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4", "progressive", "restart markers", "grey"])
def test_damaged_pictures_are_what_pillow_makes_of_them(fast: Decoder, kind: str) -> None:
    whole, boxes = np.frombuffer(KINDS[kind](scene(120, 90)), dtype=np.uint8), random_boxes(3)
    random, seen = np.random.default_rng(4), {"fault": 0, "picture": 0}
    for turn in range(300):
        bad = whole.copy()
        few = random.integers(1, 5)
        bad[random.integers(0, 650 if turn % 3 == 0 else len(bad), few)] = random.integers(0, 256, few)
        box_of = next(boxes)
        expected, found = outcome(bad.tobytes(), box_of, "pillow"), outcome(bad.tobytes(), box_of, fast)
        assert isinstance(found, str) == isinstance(expected, str)
        if isinstance(expected, str) or isinstance(found, str):
            assert found == expected
            seen["fault"] += 1
        else:  # quantised to numbers that no camera writes, two versions of libjpeg may round differently
            assert np.abs(found.astype(int) - expected).max() <= 1
            seen["picture"] += 1
    assert min(seen.values()) > 20


def test_nothing_is_read_behind_the_bytes_nor_written_beside_the_crop() -> None:
    library = native.region_library()
    if library is None:
        pytest.skip("the decoder `region` is not compiled here")
    page, whole = mmap.PAGESIZE, jpeg(scene(120, 90))
    room = -(-len(whole) // page) * page
    pages = mmap.mmap(-1, room + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + room), ctypes.c_size_t(page), 0) == 0  # reading there ends the process
    read = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
    )(("region_crop", library))
    box = native._Floats(10.0, 10.0, 110.0, 80.0)
    results = []
    for length in [*range(0, len(whole), 50), len(whole)]:
        pages[room - length : room] = whole[:length]
        canvas = np.full((3, 3, 32, 32), 77, dtype=np.uint8)
        results.append(read(start + room - length, length, box, 32, canvas[1].ctypes.data))
        assert (canvas[[0, 2]] == 77).all()
    assert results == [1] * (len(results) - 1) + [0]
    assert not (canvas[1] == 77).all()


def test_boxes_that_are_not_in_the_picture_are_refused() -> None:
    library = native.region_library()
    if library is None:
        pytest.skip("the decoder `region` is not compiled here")
    picture, out = jpeg(scene(40, 30)), np.zeros((3, 32, 32), dtype=np.uint8)
    nan, inf = float("nan"), float("inf")
    for box in (
        (-1, 0, 9, 9), (0, -0.1, 9, 9), (0, 0, 40.1, 9), (0, 0, 9, 31), (9, 0, 9, 9), (9, 0, 3, 9), (0, nan, 9, 9),
        (nan, nan, nan, nan), (0, 0, inf, 9), (1e30, 0, 2e30, 9),
    ):  # fmt: skip
        assert not native.region_crop(library, picture, lambda width, height, box=box: box, out)
    assert not native.region_crop(library, picture, lambda width, height: (0, 0, 9, 9), np.zeros((3, 0, 0), np.uint8))


def test_a_fault_leaves_the_array_as_it_was(fast: Decoder) -> None:
    out = np.full((3, 32, 32), 5, dtype=np.uint8)
    with pytest.raises(DecodeFault):
        decode_crop(jpeg(scene(120, 90))[:-900], next(random_boxes(0)), 32, fast, out=out)
    assert (out == 5).all()


def test_many_threads_may_decode(fast: Decoder) -> None:
    pictures = [jpeg(scene(100 + 7 * i, 90, i)) for i in range(8)]
    box_of = next(random_boxes(5))
    alone = [decode_crop(picture, box_of, 32, fast) for picture in pictures]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda i: decode_crop(pictures[i % 8], box_of, 32, fast), range(200)))
    assert all(np.array_equal(crop, alone[i % 8]) for i, crop in enumerate(together))


@pytest.mark.usefixtures("afresh")
def test_without_the_filter_simplejpeg_uses_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    monkeypatch.setattr(native, "filter_library", lambda: None)
    boxes = random_boxes(6)
    for picture in (jpeg(scene(90, 70)), jpeg(scene(40, 40))):
        for box_of in (next(boxes) for _ in range(20)):
            found = decode_crop(picture, box_of, 32, "simplejpeg")
            np.testing.assert_array_equal(found, decode_crop(picture, box_of, 32, "pillow"))


@pytest.mark.usefixtures("afresh")
def test_auto_is_the_fastest_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {name: decode._fast(name) is not None for name in FAST}
    first: Decoder = "region" if there["region"] else "simplejpeg" if there["simplejpeg"] else "pillow"
    assert decoder_here("auto") == first
    decode._fast.cache_clear()
    monkeypatch.setattr(native, "region_library", lambda: None)
    assert decoder_here("auto") == ("simplejpeg" if there["simplejpeg"] else "pillow")
    decode._fast.cache_clear()
    monkeypatch.setattr(decode, "_simplejpeg", lambda: None)
    assert decoder_here("auto") == "pillow"
    assert decode_crop(jpeg(scene(50, 50)), next(random_boxes(0)), 32).shape == (3, 32, 32)


@pytest.mark.usefixtures("afresh")
@pytest.mark.parametrize("wanted", FAST)
def test_one_that_is_not_there_is_refused_in_a_sentence(wanted: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "region_library", lambda: None)
    monkeypatch.setattr(decode, "_simplejpeg", lambda: None)
    with pytest.raises(ConfigError, match=f"data.decoder is {wanted}, which is not there on host .* set it to auto"):
        decoder_here(wanted)


@pytest.mark.usefixtures("afresh")
def test_where_pillow_gives_other_pixels_no_other_decoder_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was built on another library may: a run's pixels must not depend on the host."""
    pillow = decode._by_pillow
    monkeypatch.setattr(decode, "_by_pillow", lambda *given: np.clip(pillow(*given).astype(int) + 2, 0, 255))
    assert decoder_here("auto") == "pillow"
    for name in FAST:
        with pytest.raises(ConfigError, match="gives other pixels"):
            decoder_here(name)


def test_a_damaged_library_is_as_good_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    assert native._loaded("_region") is None
    name = f"_region{native.sysconfig.get_config_var('EXT_SUFFIX')}"
    (tmp_path / name).write_bytes(b"\x7fELF" + bytes(100))
    assert native._loaded("_region") is None


class Pictures:
    recipe = "scenes"
    classes = ("only",)

    def samples(self, split: str) -> list[SourceSample]:
        bad = jpeg(scene(60, 50))[:700]
        pictures = [bad if i == 5 else jpeg(scene(60 + i, 50, i)) for i in range(24)]
        return [SourceSample(f"{i:03d}", 0, partial(bytes, picture)) for i, picture in enumerate(pictures)]


def test_a_run_is_the_same_with_every_decoder(tmp_path: Path) -> None:
    index = build_shards(Pictures(), "train", str(tmp_path), samples_per_shard=8)
    found = []
    for decoder in ("pillow", *(name for name in FAST if decode._fast(name) is not None)):
        data = {"batch_size": 8, "workers": 0, "resize": 40, "image_size": 32, "decoder": decoder}
        config = Config.model_validate({"data": data})
        batches = training_batches(index, config, batches_on(config, 1), Share(), range(3), IMAGENET, False)
        found.append(list(batches))
    for other in found[1:]:
        for expected, batch in zip(found[0], other, strict=True):
            assert torch.equal(batch.pixels_b3SS, expected.pixels_b3SS)
            assert torch.equal(batch.weight_b, expected.weight_b)
            assert (batch.keys, batch.faults) == (expected.keys, expected.faults)
    assert sum(len(batch.faults) for batch in found[0]) == 1


def test_the_order_of_the_passes_is_ours() -> None:
    """First across, then down: Pillow from 13 on would take tall pictures the other way, and round otherwise."""
    picture = jpeg(scene(33, 90))
    with Image.open(io.BytesIO(picture)) as image:
        across = image.resize((32, 90), Image.Resampling.BILINEAR)
        expected = np.asarray(across.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    names: tuple[Decoder, ...] = ("pillow", *(name for name in FAST if decode._fast(name) is not None))
    for decoder in names:
        crop = decode_crop(picture, lambda width, height: (0.0, 0.0, float(width), float(height)), 32, decoder)
        np.testing.assert_array_equal(crop, expected)
