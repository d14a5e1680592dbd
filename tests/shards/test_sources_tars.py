import tarfile
from pathlib import Path

import pytest

from shards.build import build_shards
from shards.errors import InputError, StorageFault
from shards.index import ShardIndex
from shards.indexing import index_shards
from shards.reader import ShardReader
from shards.sources.resized import ResizedSource
from shards.sources.tars import TarsSource
from shards.storage import read_all, write_atomic
from tests.shards.pictures import NoiseSource, jpeg, special, write_tar


def contents(index: ShardIndex) -> dict[str, tuple[int, bytes]]:
    return {raw.key: (raw.label, raw.jpeg) for raw in ShardReader(index).read(range(len(index)))}


def test_a_set_cut_anew_has_the_same_samples(tmp_path: Path) -> None:
    first = build_shards(NoiseSource(25), "train", str(tmp_path / "a"), samples_per_shard=10)
    source = TarsSource(str(tmp_path / "a" / "train.index.json"))
    second = build_shards(source, "val", str(tmp_path / "b"), samples_per_shard=7, seed=3)
    assert second.samples_per_shard.tolist() == [7, 7, 7, 4]
    assert (second.classes, second.keys_digest) == (first.classes, first.keys_digest)
    assert contents(second) == contents(first)
    some = TarsSource(str(tmp_path / "a" / "train-{000001..000002}.tar"))
    assert len(build_shards(some, "train", str(tmp_path / "c"))) == 15
    with pytest.raises(InputError, match="already holds a split train"):
        build_shards(source, "train", str(tmp_path / "a"))


def test_tars_of_others_keep_their_keys(tmp_path: Path) -> None:
    content = [
        (special("./n01/", tarfile.DIRTYPE), b""),
        ("./n01/a.JPEG", jpeg(0)), ("./n01/a.cls", b"7\n"), ("./n01/a.json", b"{}"),
        ("b.cls", b" 3"), ("b.jpg", b"no picture at all"),
        ("d/" * 60 + "c" * 120 + ".jpg", jpeg(2)), ("d/" * 60 + "c" * 120 + ".cls", b"0"),
    ]  # fmt: skip
    write_tar(tmp_path / "v-0.tar", content)
    index_shards(f"{tmp_path}/v-0.tar")
    source = TarsSource(f"{tmp_path}/v-0.tar")
    index = build_shards(source, "v", str(tmp_path / "b"))
    expected = {"n01/a": (7, jpeg(0)), "b": (3, b"no picture at all"), "d/" * 60 + "c" * 120: (0, jpeg(2))}
    assert contents(index) == expected
    assert index.classes == tuple("01234567")
    with pytest.raises(InputError, match="the picture 'b' cannot be read"):
        build_shards(ResizedSource(source, 8), "v", str(tmp_path / "c"))


def test_keys_with_dots_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "v-0.tar", [("n.01/a.jpg", jpeg(0)), ("n.01/a.cls", b"0")])
    index_shards(f"{tmp_path}/v-0.tar")
    with pytest.raises(InputError, match=r"key 'n\.01/a' has a dot"):
        build_shards(TarsSource(f"{tmp_path}/v-0.tar"), "v", str(tmp_path / "b"))


def test_a_set_on_a_remote_store_and_to_one(tmp_path: Path) -> None:
    local = build_shards(NoiseSource(7), "train", str(tmp_path / "a"), samples_per_shard=4)
    for path in (tmp_path / "a").iterdir():
        write_atomic(f"memory://tars-source/{path.name}", path.read_bytes())
    source = TarsSource("memory://tars-source/train.index.json")
    index = build_shards(source, "train", "memory://tars-source/new", samples_per_shard=2)
    assert contents(index) == contents(local)
    here = build_shards(TarsSource(f"{tmp_path}/a/train.index.json"), "train", str(tmp_path / "b"), samples_per_shard=2)
    assert [row.sha256 for row in here.shards] == [row.sha256 for row in index.shards]
    assert read_all("memory://tars-source/new/train.index.npy") == (tmp_path / "b" / "train.index.npy").read_bytes()


def test_tars_that_are_not_what_the_index_says(tmp_path: Path) -> None:
    build_shards(NoiseSource(6), "train", str(tmp_path / "a"))
    source = TarsSource(f"{tmp_path}/a/train.index.json")
    tar = tmp_path / "a" / "train-000000.tar"
    data = tar.read_bytes()
    for damaged, says in ((data[:-10240], "is not the"), (bytes(len(data)), "is not what its index describes")):
        tar.write_bytes(damaged)
        with pytest.raises(InputError, match=says):
            build_shards(source, "train", str(tmp_path / "b"))
    tar.unlink()
    with pytest.raises((InputError, StorageFault), match=r"train-000000\.tar is missing"):
        build_shards(source, "train", str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()
