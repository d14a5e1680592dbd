"""Statistics of a set: equal to plain numpy, the same bytes from any number of workers; files that are wrong."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dist_alexnet.config import Data
from dist_alexnet.data.measure import measure
from dist_alexnet.data.statistics import (
    IMAGENET,
    Statistics,
    check_writable,
    mean_pixels,
    read_statistics,
    statistics_for,
    used_digest,
    write_statistics,
)
from dist_alexnet.errors import ConfigError
from shards.build import build_shards
from shards.errors import InputError, StorageFault
from shards.index import ShardIndex
from shards.indexing import index_shards
from shards.reader import ShardReader
from shards.sources.folder import FolderSource

RESIZE, IMAGES = 20, 23


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """23 pictures in 4 shards, stored at 20 pixels or more, with a hue."""
    root = tmp_path_factory.mktemp("statistics")
    random = np.random.default_rng(0)
    (root / "pictures" / "a").mkdir(parents=True)
    for number in range(IMAGES):
        size = (20 + 4 * (number % 2), 20 + 3 * (number % 3), 3)
        pixels = random.integers(0, 256, size) * [0.3, 0.9, 0.5] + random.integers(0, 60, size[:2])[:, :, None]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "pictures" / "a" / f"{number:02d}.png")
    return build_shards(FolderSource(str(root / "pictures")), "train", str(root / "set"), samples_per_shard=7)


def squares(index: ShardIndex) -> np.ndarray:
    """Every centre square at 20 x 20 by Pillow alone: uint8 (images, 20, 20, 3)."""
    found = []
    for sample in ShardReader(index).read(range(len(index))):
        image = Image.open(io.BytesIO(sample.jpeg)).convert("RGB")
        short = min(image.size)
        x, y = (image.width - short) // 2, (image.height - short) // 2
        if short == RESIZE:
            image = image.crop((x, y, x + short, y + short))
        else:
            image = image.resize((RESIZE, RESIZE), Image.Resampling.BILINEAR, box=(x, y, x + short, y + short))
        found.append(np.asarray(image))
    return np.stack(found)


def test_they_are_what_numpy_says(index: ShardIndex) -> None:
    facts, found = measure(index, RESIZE, 1)
    pixels = squares(index).astype(np.float64)
    flat = pixels.reshape(-1, 3)
    assert found.mean == pytest.approx(flat.mean(0), rel=1e-12)
    covariance = np.cov(flat.T, bias=True)
    assert np.array(facts["covariance"]) == pytest.approx(covariance, rel=1e-10)
    vectors, values = np.array(found.vectors), np.array(facts["eigenvalues"])
    assert vectors @ vectors.T == pytest.approx(np.eye(3), abs=1e-12)
    assert vectors.T @ np.diag(values) @ vectors == pytest.approx(covariance, rel=1e-9)
    assert list(values) == sorted(values)
    assert found.deviations == pytest.approx(np.sqrt(values))
    assert (vectors[range(3), np.abs(vectors).argmax(1)] > 0).all()
    assert found.mean_image is not None
    assert found.mean_image.dtype == np.float32
    assert found.mean_image == pytest.approx(pixels.mean(0).transpose(2, 0, 1), rel=1e-6)
    assert {key: facts[key] for key in ("images", "undecoded", "resize", "digest")} == {
        "images": IMAGES,
        "undecoded": 0,
        "resize": RESIZE,
        "digest": index.digest,
    }


def written(index: ShardIndex, folder: Path, workers: int) -> dict[str, bytes]:
    facts, found = measure(index, RESIZE, workers)
    write_statistics(str(folder), index.split, facts, found)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_any_number_of_workers_writes_the_same_bytes(index: ShardIndex, tmp_path: Path) -> None:
    here = [written(index, tmp_path / str(number), workers) for number, workers in enumerate((1, 1, 2, 3))]
    assert here[0].keys() == {"train.statistics.json", "train.mean.npy"}
    assert all(files == here[0] for files in here)
    assert str(tmp_path) not in here[0]["train.statistics.json"].decode()


def test_progress_ends_at_all(index: ShardIndex) -> None:
    seen: list[tuple[int, int]] = []
    measure(index, RESIZE, 1, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (IMAGES, IMAGES)
    assert len(seen) == len(index.shards)


def test_pictures_that_do_not_decode_are_left_out_and_counted(index: ShardIndex, tmp_path: Path) -> None:
    bad = damaged(index, tmp_path)
    facts, found = measure(bad, RESIZE, 1)
    assert (facts["images"], facts["undecoded"]) == (IMAGES - 2, 2)
    kept = np.delete(squares(index), (3, 9), 0).astype(np.float64)
    assert found.mean == pytest.approx(kept.reshape(-1, 3).mean(0), rel=1e-12)


def damaged(index: ShardIndex, folder: Path) -> ShardIndex:
    """The set with pictures 3 and 9 spoiled before their tars were indexed."""
    for path in Path(index.folder).glob("*.tar"):
        (folder / path.name).write_bytes(path.read_bytes())
    for sample in (3, 9):
        row = index.samples[sample]
        with (folder / index.shards[int(row["shard"])].name).open("r+b") as tar:
            tar.seek(int(row["offset"]))
            tar.write(b"spoiled!" * 2)
    return index_shards(f"{folder}/train-{{000000..{len(index.shards) - 1:06d}}}.tar", None)


def test_a_set_without_a_picture_has_no_statistics(index: ShardIndex, tmp_path: Path) -> None:
    bad = damaged(index, tmp_path)
    first = bad.select([bad.shards[0].name])
    only = ShardIndex(**{**vars(first), "samples": first.samples[3:4]})
    with pytest.raises(InputError, match="none of the 1 pictures of train decodes"):
        measure(only, RESIZE, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rotten_shard_is_a_fault_of_storage(index: ShardIndex, tmp_path: Path, workers: int) -> None:
    """Bytes that changed after indexing: not a bad picture, and no statistics of the rest."""
    for path in Path(index.folder).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    row = index.samples[9]
    with (tmp_path / index.shards[int(row["shard"])].name).open("r+b") as tar:
        tar.seek(int(row["offset"]))
        tar.write(b"spoiled!" * 2)
    here = ShardIndex(**{**vars(index), "folder": str(tmp_path)})
    with pytest.raises(StorageFault, match="bring the right file back"):
        measure(here, RESIZE, workers)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(index: ShardIndex, tmp_path: Path) -> Path:
    facts, found = measure(index, RESIZE, 1)
    return Path(write_statistics(str(tmp_path), "train", facts, found))


def data(**values: Any) -> Data:
    return Data.model_validate({"resize": RESIZE, "image_size": 16, **values})


def test_what_is_written_reads_back(index: ShardIndex, file: Path) -> None:
    _, ours = measure(index, RESIZE, 1)
    theirs = read_statistics(str(file), RESIZE)
    assert (theirs.mean, theirs.deviations, theirs.vectors) == (ours.mean, ours.deviations, ours.vectors)
    assert ours.mean_image is not None
    assert theirs.mean_image is not None
    assert np.array_equal(theirs.mean_image, ours.mean_image)


def test_what_is_subtracted(file: Path) -> None:
    """Three numbers; the set's; or the centre of the mean image, wherever crops are."""
    found = read_statistics(str(file), RESIZE)
    assert found.mean_image is not None
    assert mean_pixels(data(mean=[1, 2.5, 3]), IMAGENET).tolist() == [[[1.0]], [[2.5]], [[3.0]]]
    colour = mean_pixels(data(mean="colour"), IMAGENET)
    assert colour.shape == (3, 1, 1)
    assert colour.ravel().tolist() == pytest.approx([127.305, 119.715, 104.913])
    image = mean_pixels(data(mean="image", statistics=str(file)), found)
    assert image.dtype == np.float32
    assert np.array_equal(image, found.mean_image[:, 2:18, 2:18])


def test_a_file_is_read_where_it_is_used(file: Path) -> None:
    lost = "nowhere/train.statistics.json"
    assert statistics_for(data(statistics=lost)) is IMAGENET
    for used in ({"mean": "colour"}, {"mean": "image"}, {"augment": {"colour": {"deviation": 0.1}}}):
        with pytest.raises(ConfigError, match="there is no statistics file nowhere"):
            statistics_for(data(statistics=lost, **used))
        found = statistics_for(data(statistics=str(file), **used))
        assert found.mean != IMAGENET.mean
        assert (found.mean_image is not None) == (used.get("mean") == "image")
    assert statistics_for(data(mean="colour")) is IMAGENET


def test_the_identity_is_of_contents_that_are_used(file: Path, tmp_path: Path) -> None:
    found = read_statistics(str(file), RESIZE)
    noisy = {"augment": {"colour": {"deviation": 0.1}}}
    assert used_digest(data(), found) is None
    digests = [
        used_digest(data(**settings), found)
        for settings in ({"mean": "colour"}, {"mean": "image", "statistics": str(file)}, noisy)
    ]
    assert len({*digests, used_digest(data(mean="colour", **noisy), found)}) == 4
    (tmp_path / "moved").mkdir()
    for name in ("train.statistics.json", "train.mean.npy"):
        (tmp_path / "moved" / name).write_bytes((file.parent / name).read_bytes())
    moved = str(tmp_path / "moved" / file.name)
    assert used_digest(data(mean="image", statistics=moved), read_statistics(moved, RESIZE)) == digests[1]
    other = Statistics(found.mean, (1, 2, 3), found.vectors, found.mean_image)
    assert used_digest(data(mean="colour"), other) == digests[0]
    assert used_digest(data(**noisy), other) != digests[2]


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edited(file: Path) -> None:
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))

    return edited


def image(array: np.ndarray) -> Callable[[Path], object]:
    """Another mean image, with its right sha256."""

    def changed(file: Path) -> None:
        path = file.parent / "train.mean.npy"
        np.save(path, array)
        edit(lambda d: d["mean_image"].update(sha256=hashlib.sha256(path.read_bytes()).hexdigest()))(file)

    return changed


PICKLED = np.array([{"a": 1}], dtype=object)
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "not json": (lambda file: file.write_text("{"), "does not have the fields of statistics"),
    "a list": (lambda file: file.write_text("[1]"), "does not have the fields of statistics"),
    "version": (edit(lambda d: d.update(schema_version=2)), "has schema version 2 where 1 is expected"),
    "no mean": (edit(lambda d: d.pop("mean_colour")), "does not have the fields .*mean_colour"),
    "short mean": (edit(lambda d: d.update(mean_colour=[1, 2])), "does not have the fields"),
    "nan": (edit(lambda d: d.update(mean_colour=[1, 2, float("nan")])), "does not have the fields .*not finite"),
    "negative": (edit(lambda d: d.update(standard_deviations=[1, -2, 3])), "deviations are below 0"),
    "skew": (edit(lambda d: d.update(eigenvectors=[[1, 0, 0], [1, 0, 0], [0, 0, 1]])), "not at right angles"),
    "other resize": (
        edit(lambda d: d.update(resize=30)),
        r"of pictures at 30 pixels, data\.resize is 20: .*--resize 20",
    ),
    "no image": (lambda file: (file.parent / "train.mean.npy").unlink(), "there is no mean image .*train.mean.npy"),
    "rotten image": (lambda file: (file.parent / "train.mean.npy").write_bytes(b"x"), "is not the mean image that"),
    "wrong shape": (image(np.zeros((3, 20, 21), np.float32)), r"is float32 \(3, 20, 21\) where .*\(3, 20, 20\)"),
    "wrong type": (image(np.zeros((3, 20, 20))), "is float64"),
    "not finite": (image(np.full((3, 20, 20), np.inf, np.float32)), "where finite float32"),
    "pickled": (image(PICKLED), "is not an array"),
    "outside": (edit(lambda d: d["mean_image"].update(file="../secret.npy")), "has a separator"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_is_wrong_is_refused_in_one_sentence(file: Path, name: str) -> None:
    damage, says = DAMAGE[name]
    damage(file)
    with pytest.raises(InputError, match=says) as caught:
        read_statistics(str(file), RESIZE)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_only_a_statistics_file_is_read(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected imagenet or the URL of a \*\.statistics\.json file"):
        read_statistics(str(file.parent / "train.mean.npy"), None)


def test_a_mean_image_of_another_size_is_no_matter_where_only_colours_are_used(file: Path) -> None:
    assert statistics_for(data(resize=32, mean="colour", statistics=str(file))).mean_image is None


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    check_writable(str(tmp_path / "new" / "folder"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("x")
    for place in (str(tmp_path / "file"), str(tmp_path / "file" / "inside"), "https://example.org/set"):
        with pytest.raises(InputError, match="--to"):
            check_writable(place)
