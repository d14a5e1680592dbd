"""All around the GPU's decoder, with another in its place; and that decoder itself, where there is a GPU."""

import io
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dist_alexnet.config import Config, batches_on
from dist_alexnet.data import nvjpeg
from dist_alexnet.data.batch import Batch
from dist_alexnet.data.decode import decode_crop, decoder_identity, head_of
from dist_alexnet.data.loader import Share, evaluation_batches, training_batches
from dist_alexnet.data.nvjpeg import cut, missing
from dist_alexnet.data.statistics import IMAGENET
from shards.build import build_shards
from shards.index import ShardIndex
from shards.sources.source import SourceSample
from tests.data.stand_in import in_place, whole
from tests.data.test_decode_fast import KINDS, jpeg, random_boxes, scene


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


LEFT_TO_PILLOW = {
    "RGB inside": KINDS["RGB inside"],
    "CMYK": lambda image: jpeg(image.convert("CMYK")),
    "PNG": png,
    "cut short": lambda image: jpeg(image)[:-40],
    "torn": lambda image: jpeg(image)[:700],
    "no picture": lambda image: b"\xff\xd8\xff torn",
}
ASKED_FOR = {name: make for name, make in KINDS.items() if name not in LEFT_TO_PILLOW} | {
    "refused": lambda image: jpeg(image, comment=b"refuse me"),
}
FAULTS = {"cut short", "torn", "no picture"}
PICTURES = [
    make(scene(60 + number, 50 + 2 * number, number))
    for number, make in enumerate((ASKED_FOR | LEFT_TO_PILLOW).values())
]
NAMES = [*ASKED_FOR, *LEFT_TO_PILLOW]
ALONE = Share()


class Kinds:
    """One picture of each kind."""

    recipe = "kinds"
    classes = ("only",)

    def samples(self, split: str) -> list[SourceSample]:
        return [SourceSample(f"{i:02d}", 0, partial(bytes, picture)) for i, picture in enumerate(PICTURES)]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return build_shards(Kinds(), "train", str(tmp_path_factory.mktemp("kinds")), samples_per_shard=5)


def config(decoder: str, **data: Any) -> Config:
    small = {"batch_size": 6, "workers": 0, "resize": 40, "image_size": 32, "augment": {"crop": "resized"}}
    return Config.model_validate({"data": {**small, **data, "decoder": decoder}, "evaluate": {"batch_size": 8}})


def training(index: ShardIndex, settings: Config, share: Share = ALONE) -> list[Batch]:
    batches = batches_on(settings, share.data_ranks)
    return list(training_batches(index, settings, batches, share, range(6), IMAGENET, pin_memory=False))


def assert_nearly(ours: list[Batch], theirs: list[Batch]) -> None:
    """All the same but pixels by a level, where a weight rounds otherwise."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.pixels_b3SS.int() - other.pixels_b3SS.int()).abs().max() <= 1
        for name in ("mirror_b", "label_b", "weight_b", "position_b", "noise_b3", "divisor_b"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert one.keys == other.keys
        assert sorted(one.faults, key=lambda fault: fault.position) == sorted(
            other.faults, key=lambda fault: fault.position
        )


def test_a_box_is_cut_as_by_pillow() -> None:
    """Boxes on fractions of pixels too, larger and smaller than the crop, at borders of the picture."""
    boxes, off, values = random_boxes(7), 0, 0
    for number in range(30):
        picture, box_of = jpeg(scene(40 + 13 * number, 400 - 11 * number, number)), next(boxes)
        width, height, _ = head_of(picture)
        (found,) = whole([np.frombuffer(picture, np.uint8)])
        assert found is not None
        expected = torch.from_numpy(decode_crop(picture, box_of, 48, "pillow"))
        difference = (cut(found, box_of(width, height), 48).int() - expected.int()).abs()
        assert difference.max() <= 1
        off, values = off + int(difference.sum()), values + difference.numel()
    assert off < 0.01 * values


def test_a_box_of_whole_pixels_is_not_resampled() -> None:
    pixels = torch.arange(40 * 50 * 3, dtype=torch.int64).remainder(256).to(torch.uint8).view(40, 50, 3)
    assert torch.equal(cut(pixels, (7.0, 3.0, 39.0, 35.0), 32), pixels[3:35, 7:39].permute(2, 0, 1))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_cpus(index: ShardIndex, workers: int) -> None:
    """Labels, weights, faults and their words, keys; and the pixels, as the decoder in place is Pillow."""
    asked = list[bytes]()

    def noted(files: Sequence[np.ndarray]) -> list[Tensor | None]:
        asked.extend(file.tobytes() for file in files)
        return whole(files)

    expected = training(index, config("pillow"))
    with in_place(noted):
        batches = training(index, config("nvjpeg", workers=workers))
    assert_nearly(batches, expected)
    assert {int(fault.key) for batch in batches for fault in batch.faults} == {NAMES.index(name) for name in FAULTS}
    assert {PICTURES.index(file) for file in asked} == {NAMES.index(name) for name in ASKED_FOR}


def test_what_the_decoder_in_place_gives_is_seen(index: ShardIndex) -> None:
    """Else the test above would be passed by a loader that never asks it."""
    with in_place(partial(whole, off=20)):
        brighter, plain = training(index, config("nvjpeg")), training(index, config("pillow"))
    for one, other in zip(brighter, plain, strict=True):
        for slot, key in enumerate(one.keys):
            name = NAMES[int(key)]
            difference = (one.pixels_b3SS[slot].float() - other.pixels_b3SS[slot].float()).mean()
            assert (difference > 10) == (name in ASKED_FOR and name != "refused"), name


@pytest.mark.parametrize("share", [Share(0, 3), Share(0, 1, 0, 2), Share(0, 1, 0, 1, 0, 2)])
def test_a_picture_is_the_same_in_any_share(index: ShardIndex, share: Share) -> None:
    """Bit for bit: what else is in its batch decides nothing."""
    with in_place():
        batches, parts = training(index, config("nvjpeg")), training(index, config("nvjpeg"), share)
    known = dict[int, Tensor]()
    for batch in batches:
        known |= dict(zip(batch.position_b.tolist(), batch.pixels_b3SS, strict=True))
    for part in parts:
        assert len(part.position_b) < 6
        for position, pixels in zip(part.position_b.tolist(), part.pixels_b3SS, strict=True):
            assert torch.equal(pixels, known[position])


def test_an_evaluation_with_padding(index: ShardIndex) -> None:
    """The last batch of some ranks is nothing but padding."""
    for rank in range(4):
        share = Share(rank, 4)
        expected = list(evaluation_batches(index, config("pillow"), share, pin_memory=False))
        with in_place():
            batches = list(evaluation_batches(index, config("nvjpeg"), share, pin_memory=False))
        assert_nearly(batches, expected)
    assert any(not batch.keys for batch in batches)


def test_without_a_gpu_it_says_so() -> None:
    assert missing(torch.device("cpu")) is not None
    assert "host" in str(missing(torch.device("cuda", 0))) or gpu_is_there()


def test_a_decoder_with_other_pixels_is_found_out() -> None:
    assert nvjpeg._furthest(whole) < 0.1
    assert nvjpeg._furthest(partial(whole, off=3)) < nvjpeg.NEARLY

    def other_colours(files: Sequence[np.ndarray]) -> list[Tensor | None]:
        return [None if found is None else found.flip(2) for found in whole(files)]

    def other_side_up(files: Sequence[np.ndarray]) -> list[Tensor | None]:
        return [None if found is None else found.flip(0) for found in whole(files)]

    for decode in (other_colours, other_side_up, lambda files: [None]):
        assert nvjpeg._furthest(decode) > 2 * nvjpeg.NEARLY


def test_its_pixels_are_another_identity() -> None:
    assert decoder_identity("nvjpeg") != decoder_identity("auto") == decoder_identity("region")


def gpu_is_there() -> bool:
    return torch.cuda.is_available() and find_spec("nvidia") is not None and find_spec("nvidia.nvimgcodec") is not None


def check(index: ShardIndex, device: torch.device) -> None:
    """Against Pillow: the same faults, nearly the same pixels; and bit for bit the same in batches of a third."""
    whole_batches, parts = (
        [batch.to(device) for batch in training(index, config("nvjpeg"), share)] for share in (ALONE, Share(0, 3))
    )
    known = dict[int, Tensor]()
    for batch, expected in zip(whole_batches, training(index, config("pillow")), strict=True):
        assert torch.equal(batch.weight_b.cpu(), expected.weight_b)
        assert batch.keys == expected.keys
        assert {fault.key for fault in batch.faults} == {fault.key for fault in expected.faults}
        off = (batch.pixels_b3SS.cpu().float() - expected.pixels_b3SS.float()).abs().mean((1, 2, 3))
        assert off.max() < nvjpeg.NEARLY
        known |= dict(zip(batch.position_b.tolist(), batch.pixels_b3SS, strict=True))
    for batch in parts:
        for at, pixels in zip(batch.position_b.tolist(), batch.pixels_b3SS, strict=True):
            assert torch.equal(pixels, known[at])


def test_another_decoder_in_place(index: ShardIndex) -> None:
    with in_place(partial(whole, off=2)):
        check(index, torch.device("cpu"))


@pytest.mark.skipif(not gpu_is_there(), reason="needs a GPU and nvidia-nvimgcodec")
def test_nvjpeg_itself(index: ShardIndex) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    assert missing(device) is None
    check(index, device)
