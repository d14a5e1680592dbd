"""The same batches whatever the workers and however they are shared; bad pictures keep their place."""

import dataclasses
import io
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dist_alexnet.config import Batches, Colour, Config
from dist_alexnet.data import loader
from dist_alexnet.data.batch import Batch
from dist_alexnet.data.colour import colour_noise
from dist_alexnet.data.crop import square_box
from dist_alexnet.data.decode import decode_crop
from dist_alexnet.data.loader import Share, evaluation_batches, training_batches
from dist_alexnet.data.statistics import IMAGENET
from dist_alexnet.data.view import training_views
from shards.build import build_shards
from shards.errors import StorageFault
from shards.index import ShardIndex, read_index
from shards.order import Order, batch_positions
from shards.reader import ShardReader
from shards.sources.folder import FolderSource
from shards.sources.source import SourceSample

IMAGES, BATCH, STEPS = 40, 12, range(2, 8)  # positions 24..95: over the ends of two epochs
TORN = ("bee_17", "cat_38")
ALONE = Share()


class TornSource:
    """A folder of pictures, some of which lost their second half after they were listed."""

    def __init__(self, folder: Path) -> None:
        self._source = FolderSource(str(folder))
        self.recipe, self.classes = "torn", self._source.classes

    def samples(self, split: str) -> list[SourceSample]:
        return [
            dataclasses.replace(one, load=lambda: b"\xff\xd8\xff torn") if one.key in TORN else one
            for one in self._source.samples(split)
        ]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    root = tmp_path_factory.mktemp("loader")
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        name = ("ant", "bee", "cat")[number * 3 // IMAGES]
        pixels = random.integers(0, 256, (20, 20 + number % 3 * 2, 3), dtype=np.uint8)
        (root / "pictures" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "pictures" / name / f"{number}.jpg")
    return build_shards(TornSource(root / "pictures"), "train", str(root / "set"), samples_per_shard=7)


def config(**data: Any) -> Config:
    small = {"batch_size": BATCH, "resize": 20, "image_size": 16, "window_shards": 1, "workers": 0}
    return Config.model_validate({"data": {**small, **data}, "evaluate": {"batch_size": 9}})


def training(index: ShardIndex, share: Share = ALONE, accumulation: int = 1, **data: Any) -> list[Batch]:
    batches = Batches(
        data_ranks=share.data_ranks, micro_batch=BATCH // share.data_ranks // accumulation, accumulation=accumulation
    )
    return list(training_batches(index, config(**data), batches, share, STEPS, IMAGENET, pin_memory=False))


def cut(picture: bytes, left: int, top: int) -> np.ndarray:
    return decode_crop(picture, partial(square_box, left=left, top=top, resize=20, image_size=16), 16)


def joined(batches: list[Batch]) -> dict[str, Any]:
    """Several batches as one, in plain comparable form."""
    whole: dict[str, Any] = {
        name: torch.cat([getattr(batch, name) for batch in batches])
        for name in ("pixels_b3SS", "mirror_b", "label_b", "weight_b", "position_b", "noise_b3", "divisor_b")
    }
    whole["keys"] = [key for batch in batches for key in batch.keys]
    whole["faults"] = [fault for batch in batches for fault in batch.faults]
    return whole


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, value in theirs.items():
        assert torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value, name


@pytest.fixture(scope="module")
def reference(index: ShardIndex) -> list[Batch]:
    return training(index)


def test_batches_are_what_order_view_and_decoder_say(index: ShardIndex, reference: list[Batch]) -> None:
    settings = config()
    order = Order(index.samples_per_shard, 0, settings.data.lane_count, 1)
    assert len(reference) == len(STEPS)
    for step, batch in zip(STEPS, reference, strict=True):
        positions = batch_positions(step, BATCH, settings.data.lane_count)
        assert sorted(positions.tolist()) == list(range(step * BATCH, (step + 1) * BATCH))
        samples = ShardReader(index).read(order.samples(positions))
        views = training_views(positions, 0, settings.data, None)
        assert batch.position_b.tolist() == positions.tolist()
        assert list(batch.keys) == [sample.key for sample in samples]
        assert batch.label_b.tolist() == [sample.label for sample in samples]
        assert batch.mirror_b.tolist() == views.mirror.tolist()
        for slot, sample in enumerate(samples):
            expected = np.zeros((3, 16, 16), dtype=np.uint8)
            if sample.key not in TORN:
                expected = cut(sample.jpeg, int(views.left[slot]), int(views.top[slot]))
            assert np.array_equal(batch.pixels_b3SS[slot].numpy(), expected)
            assert batch.weight_b[slot] == (sample.key not in TORN)
    assert {
        "pixels_b3SS": torch.uint8,
        "mirror_b": torch.bool,
        "label_b": torch.int64,
        "weight_b": torch.float32,
    }.items() <= {
        name: value.dtype for name, value in joined(reference).items() if isinstance(value, torch.Tensor)
    }.items()


def test_each_epoch_has_each_sample_once(index: ShardIndex, reference: list[Batch]) -> None:
    whole = joined(reference)
    keys = [
        key for key, position in zip(whole["keys"], whole["position_b"].tolist(), strict=True) if 40 <= position < 80
    ]
    assert len(keys) == IMAGES
    assert len(set(keys)) == IMAGES


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(index: ShardIndex, reference: list[Batch], workers: int) -> None:
    batches = training(index, workers=workers)
    assert len(batches) == len(reference)
    for ours, theirs in zip(batches, reference, strict=True):
        assert_same(joined([ours]), joined([theirs]))
    assert all(0 < batch.fetch_s < 5 and 0 < batch.decode_s < 5 for batch in batches)  # noted by the worker


def test_fetching_and_decoding_are_told_apart(index: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is slowed down by so much that it shows in the one figure only; a batch has 12 pictures and 1 read."""
    read = ShardReader.read

    def slow_read(reader: ShardReader, ids: np.ndarray) -> Any:
        time.sleep(0.1)
        return read(reader, ids)

    monkeypatch.setattr(ShardReader, "read", slow_read)
    batch = training(index)[0]
    assert batch.fetch_s >= 0.1 > batch.decode_s
    monkeypatch.undo()

    def slow_decode(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.01)
        return decode_crop(*arguments, **named)

    monkeypatch.setattr(loader, "decode_crop", slow_decode)
    batch = training(index)[0]
    assert batch.decode_s >= BATCH * 0.01 > batch.fetch_s


@pytest.mark.parametrize(
    ("data_ranks", "replicas", "accumulation"),
    [(1, 1, 4), (2, 1, 1), (3, 1, 2), (4, 1, 1), (1, 2, 1), (1, 3, 2), (2, 2, 3), (3, 4, 1), (12, 1, 1)],
)
def test_shares_make_up_the_same_batches(
    index: ShardIndex, reference: list[Batch], data_ranks: int, replicas: int, accumulation: int
) -> None:
    ranks = {
        (data_rank, replica): training(index, Share(data_rank, data_ranks, replica, replicas), accumulation)
        for data_rank in range(data_ranks)
        for replica in range(replicas)
    }
    for batches in ranks.values():
        assert len(batches) == len(STEPS) * accumulation
        assert {len(batch.keys) for batch in batches} == {BATCH // (data_ranks * replicas * accumulation)}
    for number, expected in enumerate(reference):
        parts = [
            ranks[data_rank, replica][number * accumulation + micro]
            for data_rank in range(data_ranks)
            for micro in range(accumulation)
            for replica in range(replicas)
        ]
        assert_same(joined(parts), joined([expected]))


@pytest.mark.parametrize(("data_ranks", "replicas", "accumulation"), [(1, 1, 1), (1, 1, 3), (2, 1, 1), (1, 3, 1)])
def test_columns_that_share_the_decoding_make_up_their_replicas_batch(
    index: ShardIndex, reference: list[Batch], data_ranks: int, replicas: int, accumulation: int
) -> None:
    """One column after the other along the batch: what is exchanged is the batch that each would have loaded."""
    for data_rank in range(data_ranks):
        for replica in range(replicas):
            share = Share(data_rank, data_ranks, replica, replicas)
            columns = [
                training(index, dataclasses.replace(share, column=column, columns=2), accumulation)
                for column in range(2)
            ]
            for whole, *parts in zip(training(index, share, accumulation), *columns, strict=True):
                assert [len(part.keys) for part in parts] == [len(whole.keys) // 2] * 2
                assert_same(joined(parts), joined([whole]))


COLOUR = {"colour": {"deviation": 0.1, "until_epoch": 1.6}}


def test_a_batch_carries_the_noise_of_its_positions(index: ShardIndex, reference: list[Batch]) -> None:
    """The noise ends inside a batch, at position 1.6 x 40; pixels, crops and flips are those of a run without."""
    noisy = joined(training(index, augment=COLOUR))
    made = colour_noise(Colour.model_validate(COLOUR["colour"]), IMAGENET, IMAGES)
    assert made is not None
    noise, divisor = made.at(noisy["position_b"].numpy(), 0)
    assert np.array_equal(noisy["noise_b3"].numpy(), noise)
    assert np.array_equal(noisy["divisor_b"].numpy(), divisor)
    ended = noisy["position_b"] >= 64
    assert torch.equal(noisy["noise_b3"].any(1), ~ended)
    assert any(0 < int((batch.position_b >= 64).sum()) < BATCH for batch in reference)
    plain = joined(reference)
    assert torch.equal(noisy["pixels_b3SS"], plain["pixels_b3SS"])
    assert torch.equal(noisy["mirror_b"], plain["mirror_b"])
    assert not plain["noise_b3"].any()
    split = [training(index, Share(rank, 3), augment=COLOUR) for rank in range(3)]
    for number in range(len(STEPS)):
        assert_same(joined([part[number] for part in split]), joined([training(index, augment=COLOUR)[number]]))


def test_a_resized_crop_is_cut_from_the_whole_stored_picture(index: ShardIndex) -> None:
    settings = config(augment={"crop": "resized"})
    batch = training(index, augment={"crop": "resized"})[0]
    views = training_views(batch.position_b.numpy(), 0, settings.data, None)
    ids = Order(index.samples_per_shard, 0, settings.data.lane_count, 1).samples(batch.position_b.numpy())
    samples, boxes = ShardReader(index).read(ids), set()
    for slot, sample in enumerate(samples):
        if sample.key in TORN:
            continue
        with Image.open(io.BytesIO(sample.jpeg)) as image:
            box = views.box(slot, *image.size)
            expected = image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR, box=box)
        boxes.add(box)
        assert np.array_equal(batch.pixels_b3SS[slot].numpy(), np.asarray(expected).transpose(2, 0, 1))
    assert len(boxes) > 5


def test_a_run_taken_up_goes_on_with_the_same_batches(index: ShardIndex, reference: list[Batch]) -> None:
    batches = Batches(data_ranks=1, micro_batch=BATCH, accumulation=1)
    late = list(training_batches(index, config(), batches, Share(), range(5, 8), IMAGENET, pin_memory=False))
    assert_same(joined(late), joined(reference[3:]))


def test_a_torn_picture_keeps_its_place_and_is_reported(index: ShardIndex, reference: list[Batch]) -> None:
    whole = joined(reference)
    bad = (whole["weight_b"] == 0).nonzero()[:, 0].tolist()
    assert {whole["keys"][slot] for slot in bad} == set(TORN)
    assert len(whole["faults"]) == len(bad) >= 2
    for slot, fault in zip(bad, whole["faults"], strict=True):
        assert (fault.key, fault.position) == (whole["keys"][slot], whole["position_b"][slot])
        assert Path(fault.url).is_file()
        assert fault.cause
        assert not whole["pixels_b3SS"][slot].any()
        assert index.classes is not None
        assert index.classes[whole["label_b"][slot]] == fault.key.split("_")[0]


@pytest.mark.parametrize("parts", [(1, 1, 1), (2, 1, 1), (3, 2, 1), (1, 4, 1), (7, 1, 1), (1, 1, 2), (2, 3, 2)])
def test_evaluation_sees_every_image_once(index: ShardIndex, parts: tuple[int, int, int]) -> None:
    """Whatever the training does to its pictures; columns that share the decoding are parts like any other."""
    noisy = config(augment={**COLOUR, "crop": "resized"})
    ranks = [
        list(evaluation_batches(index, noisy, Share(d, parts[0], r, parts[1], c, parts[2]), pin_memory=False))
        for d in range(parts[0])
        for r in range(parts[1])
        for c in range(parts[2])
    ]
    assert len({len(batches) for batches in ranks}) == 1  # ranks that wait for each other must come equally often
    seen = [key for batches in ranks for batch in batches for key in batch.keys]
    assert len(seen) == IMAGES
    assert len(set(seen)) == IMAGES
    for batch in (batch for batches in ranks for batch in batches):
        padding = batch.position_b < 0
        assert int((~padding).sum()) == len(batch.keys)
        assert not batch.weight_b[padding].any()
        assert not batch.mirror_b.any()
        assert not batch.noise_b3.any()
        assert (batch.divisor_b == 1).all()
        real = [slot for slot, pad in enumerate(padding.tolist()) if not pad]
        for slot, raw in zip(real, ShardReader(index).read(batch.position_b[real].numpy()), strict=True):
            assert batch.label_b[slot] == raw.label
            if raw.key not in TORN:
                assert np.array_equal(batch.pixels_b3SS[slot].numpy(), cut(raw.jpeg, 2, 2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_shard_that_is_gone_is_a_storage_fault(index: ShardIndex, tmp_path: Path, workers: int, damage: str) -> None:
    """As itself, in one sentence, from a worker too: it is not a bad picture, and the run must not go on without it."""
    for path in Path(index.folder).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    here = read_index(f"{tmp_path}/train.index.json")
    lost = tmp_path / here.shards[2].name
    if damage == "gone":
        lost.unlink()
    else:
        lost.write_bytes(lost.read_bytes()[:-512])
    with pytest.raises(StorageFault, match=lost.name) as caught:
        training(here, workers=workers)
    assert "\n" not in str(caught.value)


# ---- Batch ----------------------------------------------------------------------------------------------------------


def batch_of(pixels: torch.Tensor, mirror: list[bool]) -> Batch:
    images = len(mirror)
    return Batch(
        pixels_b3SS=pixels,
        mirror_b=torch.tensor(mirror),
        label_b=torch.arange(images),
        weight_b=torch.ones(images),
        position_b=torch.arange(images),
        noise_b3=torch.zeros(images, 3),
        divisor_b=torch.ones(images),
        keys=tuple(map(str, range(images))),
        faults=(),
    )


def test_inputs_are_pixels_minus_mean_mirrored() -> None:
    pixels = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    inputs = batch_of(pixels, [False, True]).inputs(torch.tensor([1.5, 20.0, 100.0])[:, None, None])
    assert inputs.dtype == torch.float32
    for colour, mean in enumerate((1.5, 20.0, 100.0)):
        for row in range(4):
            for column in range(4):
                assert inputs[0, colour, row, column] == pixels[0, colour, row, column].item() - mean
                assert inputs[1, colour, row, column] == pixels[1, colour, row, 3 - column].item() - mean


def test_inputs_with_a_mean_image_noise_and_division() -> None:
    """(pixel of the mirrored crop - mean at its place in the crop + noise) / divisor: the mean is not mirrored."""
    pixels = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    mean_3SS = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) * 100
    noise, divisor = torch.tensor([[1.5, -2.0, 30.0], [0.0, 0.0, 0.0]]), torch.tensor([1.1, 1.0])
    batch = dataclasses.replace(batch_of(pixels, [True, False]), noise_b3=noise, divisor_b=divisor)
    inputs = batch.inputs(mean_3SS)
    assert inputs.dtype == torch.float32
    for image, colour, row, column in np.ndindex(2, 3, 4, 4):
        pixel = float(pixels[image, colour, row, 3 - column if image == 0 else column])
        expected = (pixel - float(mean_3SS[colour, row, column]) + float(noise[image, colour])) / float(divisor[image])
        assert inputs[image, colour, row, column].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert torch.equal(batch.pixels_b3SS, pixels)


def test_a_batch_travels_whole() -> None:
    batch = batch_of(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [True, False])
    there = batch.to(torch.device("meta"))
    devices = {field.name: getattr(there, field.name) for field in dataclasses.fields(there)}
    assert {value.device.type for value in devices.values() if isinstance(value, torch.Tensor)} == {"meta"}
    assert (there.keys, there.faults) == (batch.keys, batch.faults)
