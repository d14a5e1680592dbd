import hashlib
import json
import pickle
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.errors import InputError, StorageFault
from shards.index import SAMPLE_DTYPE, ShardIndex, key_digest, read_index, write_index
from shards.indexing import index_shards
from tests.bench.synthetic import imagenet
from tests.shards.pictures import members, write_tar


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for shard in range(3):
        write_tar(folder / f"train-{shard:06d}.tar", members(4 + shard, first=100 * shard))
    index_shards(f"{folder}/train-{{000000..000002}}.tar")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "set"))


def test_round_trip(folder: Path) -> None:
    index = read_index(f"{folder}/train.index.json")
    assert (len(index), index.split, index.classes, index.num_classes) == (15, "train", None, 5)
    assert index.samples_per_shard.tolist() == [4, 5, 6]
    assert index.samples_per_shard.dtype == np.int64
    assert isinstance(index.samples, np.memmap)
    assert index.samples.dtype == SAMPLE_DTYPE
    assert SAMPLE_DTYPE.itemsize == 28
    before = {path.name: path.read_bytes() for path in folder.glob("*.index.*")}
    other = folder / "other"
    shutil.copytree(folder, other)
    for path in other.glob("*.index.*"):
        path.unlink()
    write_index(
        ShardIndex(str(other), *[getattr(index, f) for f in ("split", "classes", "num_classes", "shards", "samples")]),
        str(other),
    )
    assert {path.name: path.read_bytes() for path in other.glob("*.index.*")} == before


def test_digests(folder: Path) -> None:
    index = read_index(f"{folder}/train.index.json")
    keys = [f"s{100 * shard + i:04d}" for shard in range(3) for i in range(4 + shard)]
    assert key_digest("a") == int.from_bytes(hashlib.sha256(b"a").digest()[:8], "little")
    assert index.keys_digest == sum(map(key_digest, keys)) % 2**64
    assert len(index.digest) == 64
    assert index.without(["train-000001.tar"]).digest != index.digest
    assert read_index(f"{folder}/train-{{000000..000002}}.tar").digest == index.digest


def test_pattern_may_name_a_subset(folder: Path) -> None:
    whole = read_index(f"{folder}/train.index.json")
    part = read_index(f"{folder}/train-{{000001..000002}}.tar")
    assert [row.name for row in part.shards] == ["train-000001.tar", "train-000002.tar"]
    assert part.samples["shard"].tolist() == [0] * 5 + [1] * 6
    assert np.array_equal(part.samples["offset"], whole.samples["offset"][4:])
    assert part.shard_url(0).endswith("train-000001.tar")
    assert len(read_index(f"{folder}/train-000002.tar")) == 6


def test_without(folder: Path) -> None:
    index = read_index(f"{folder}/train.index.json")
    left = index.without(["train-000001.tar"])
    assert [row.name for row in left.shards] == ["train-000000.tar", "train-000002.tar"]
    assert left.samples["shard"].tolist() == [0] * 4 + [1] * 6
    assert index.without([]) is index
    with pytest.raises(InputError, match=r"'train-00001\.tar'.*nearest is 'train-000001\.tar'"):
        index.without(["train-00001.tar"])
    with pytest.raises(InputError, match="leaves none"):
        index.without([row.name for row in index.shards])


def test_missing_index_tells_the_command(folder: Path) -> None:
    (folder / "train.index.json").unlink()
    pattern = f"{folder}/train-{{000000..000002}}.tar"
    for url in (pattern, f"{folder}/train.index.json"):
        with pytest.raises(InputError) as error:
            read_index(url)
        assert f"dist-alexnet shards index '{pattern}'" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["nowhere/train.index.json", "nowhere/train-{000000..000003}.tar", "nowhere/train.tar", "nowhere/train-{3..1}.tar",
     "nowhere/train-{a..b}.tar", "nowhere/{0..3}.tar", "x{0..1}/train-000000.tar", "nowhere/train", "nowhere/",
     "pipe:cat train.index.json", "nowhere/-x.index.json", "train-{0..99999999}.tar"],
)  # fmt: skip
def test_names_that_cannot_be_read_are_refused(url: str) -> None:
    with pytest.raises(InputError):
        read_index(url)


def change(document: dict[str, Any], path: str, value: Any) -> None:
    *way, last = path.split(".")
    at: Any = document
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]
    at[int(last) if isinstance(at, list) else last] = value


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("schema_version", 1, "schema version 1 where 2 is expected: make it again with dist-alexnet shards index"),
        ("totals.samples", 14, "samples 14 in all"),
        ("totals.bytes", 1, "bytes 1 in all"),
        ("totals.shards", 2, "shards 2 in all"),
        ("totals.keys_digest", "0" * 16, "keys_digest"),
        ("shards.0.samples", 5, "in all"),
        ("shards.0.name", "../train-000000.tar", "separator"),
        ("shards.0.name", "train-000001.tar", "twice"),
        ("shards.0.bytes", "10", "fields"),
        ("shards.0.bytes", -1, "fields"),
        ("shards.0.sha256", "xyz", "fields"),
        ("shards", 7, "fields"),
        ("classes", ["a"], "names 1 classes"),
        ("num_classes", 4, "label outside 0..3"),
        ("num_classes", True, "fields"),
        ("split", "val", "split 'val'"),
        ("folder", "pipe:cat", "pipe:"),
        ("sidecar_sha256", "0" * 64, "not the table"),
    ],
)
def test_an_index_that_cannot_be_right_is_refused_in_one_sentence(
    folder: Path, path: str, value: Any, says: str
) -> None:
    file = folder / "train.index.json"
    document = json.loads(file.read_text())
    change(document, path, value)
    file.write_text(json.dumps(document))
    with pytest.raises(InputError) as error:
        read_index(str(file))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '"x"', "\udcff", '{"schema_version": 1}', '{"schema_version": [1]}']
)
def test_garbage_is_refused(folder: Path, text: str) -> None:
    (folder / "train.index.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"train\.index\.json"):
        read_index(f"{folder}/train.index.json")


def lay(folder: Path, table: np.ndarray | bytes) -> None:
    """Put another sidecar in place, with its right sum."""
    file = folder / "train.index.npy"
    if isinstance(table, bytes):
        file.write_bytes(table)
    else:
        np.save(file, table, allow_pickle=True)
    document = json.loads((folder / "train.index.json").read_text())
    document["sidecar_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "train.index.json").write_text(json.dumps(document))


def edited(field: str, row: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def edit(table: np.ndarray) -> np.ndarray:
        table[field][row] = value
        return table

    return edit


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda table: table[:-1], "14 rows"),
        (lambda table: np.zeros(15), "rows of float64"),
        (lambda table: np.array([{"a": 1}] * 15, dtype=object), "fields"),  # would need unpickling
        (lambda table: b"", "fields"),
        (lambda table: b"\x93NUMPY\x01", "fields"),
        (lambda table: table[::-1], "shard by shard"),
        (edited("offset", 3, 2**40), "outside its shard"),
        (edited("offset", 3, 2**64 - 1), "outside its shard"),
        (edited("head", 0, 2**20), "outside its shard"),
        (edited("label", 2, -1), "label outside"),
        (edited("label", 2, 5), "label outside"),
    ],
)
def test_a_sidecar_that_cannot_be_right_is_refused(folder: Path, edit: Callable[..., Any], says: str) -> None:
    lay(folder, edit(np.load(folder / "train.index.npy")))
    with pytest.raises(InputError, match=says):
        read_index(f"{folder}/train.index.json")


def test_a_sidecar_of_another_index_is_refused(folder: Path) -> None:
    with (folder / "train.index.npy").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=r"train\.index\.npy is not the table"):
        read_index(f"{folder}/train.index.json")
    (folder / "train.index.npy").unlink()
    with pytest.raises(InputError, match=r"no train\.index\.npy beside it"):
        read_index(f"{folder}/train.index.json")


def test_an_index_of_imagenets_size_opens_at_once_and_travels_light(tmp_path: Path) -> None:
    """1.28 million samples: as JSON they would take 1.7 s. To other processes goes the table's name, not the table."""
    write_index(imagenet(str(tmp_path)), str(tmp_path))
    spent_s = []
    for _ in range(3):
        begin_s = time.process_time()
        index = read_index(f"{tmp_path}/train.index.json")
        spent_s.append(time.process_time() - begin_s)
    assert min(spent_s) < 0.5
    assert len(index) == 1_281_167
    sent = pickle.dumps(index)
    assert len(sent) < 1_000_000 < index.samples.nbytes
    other = pickle.loads(sent)
    assert isinstance(other.samples, np.memmap)
    assert other.digest == index.digest
    assert np.array_equal(other.samples["offset"], index.samples["offset"])


def test_a_part_of_an_index_travels_as_that_part(folder: Path) -> None:
    index = read_index(f"{folder}/train.index.json")
    for part in (index.without(["train-000001.tar"]), replace(index, samples=index.samples[3:9])):
        assert np.array_equal(pickle.loads(pickle.dumps(part)).samples, part.samples)
    sent = pickle.dumps(index)
    (folder / "train.index.npy").write_bytes((folder / "train.index.npy").read_bytes())
    with pytest.raises(StorageFault, match="written anew while it was in use"):
        pickle.loads(sent)
