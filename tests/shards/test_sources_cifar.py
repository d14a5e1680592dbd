import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.build import build_shards
from shards.errors import InputError
from shards.reader import ShardReader
from shards.sources.cifar import CifarSource
from tests.shards.archives import cifar10, cifar100, cifar_archive, cifar_pixels


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
        return np.asarray(image).transpose(2, 0, 1)


def test_cifar_10_keeps_every_pixel_label_and_name(tmp_path: Path) -> None:
    source = CifarSource(str(cifar10(tmp_path / "cifar-10-binary.tar.gz")))
    index = build_shards(source, "train", str(tmp_path / "set"), samples_per_shard=4)
    assert index.classes == tuple(f"class{i}" for i in range(10))
    assert index.class_info is None
    assert len(index) == 15
    for raw in ShardReader(index).read(range(15)):
        batch, i = divmod(int(raw.key.removeprefix("cifar10-train-")), 3)
        assert raw.label == (batch + 1 + i) % 10
        assert (pixels(raw.jpeg) == cifar_pixels(3, batch + 1)[i]).all()
    val = source.samples("val")
    assert [(s.key, s.label) for s in val] == [(f"cifar10-val-{i:05d}", (6 + i) % 10) for i in range(3)]
    assert (pixels(val[2].load()) == cifar_pixels(3, 6)[2]).all()
    with pytest.raises(InputError, match="no split 'test'"):
        source.samples("test")


def test_cifar_100_has_fine_classes_and_says_the_coarse_ones(tmp_path: Path) -> None:
    source = CifarSource(str(cifar100(tmp_path / "cifar-100-binary.tar.gz")))
    samples = source.samples("train")
    assert [(s.key, s.label) for s in samples] == [(f"cifar100-train-{i:05d}", 7 * i) for i in range(4)]
    assert (pixels(samples[3].load()) == cifar_pixels(4, 0)[3]).all()
    assert source.classes == tuple(f"fine{i}" for i in range(100))
    assert source.class_info is not None
    assert [source.class_info[i]["coarse"] for i in (0, 1, 7, 21)] == ["coarse0", None, "coarse7", "coarse1"]


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "hit"),))  # type: ignore[return-value]

    files = {"data_batch_1": pickle.dumps(Bomb()), "batches.meta": pickle.dumps(Bomb())}
    path = cifar_archive(tmp_path / "cifar-10-python.tar.gz", files, "cifar-10-batches-py")
    with pytest.raises(InputError, match=r"never opened: take the binary one, cifar-10-binary\.tar\.gz"):
        build_shards(CifarSource(str(path)), "train", str(tmp_path / "set"))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


NAMES = b"".join(b"c%d\n" % i for i in range(10))
RECORD = bytes([3]) + bytes(3072)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"readme.html": b""}, r"holds neither batches\.meta\.txt"),
        ({"batches.meta.txt": NAMES}, "holds no pictures of split train"),
        ({"batches.meta.txt": NAMES, "data_batch_1.bin": RECORD[:-1]}, "of 3072 bytes where a multiple"),
        ({"batches.meta.txt": NAMES, "data_batch_1.bin": b""}, "of 0 bytes"),
        ({"batches.meta.txt": NAMES, "data_batch_1.bin": b"\x0a" + RECORD[1:]}, "of class 10 where there are 10"),
        ({"fine_label_names.txt": NAMES, "train.bin": bytes(3074)}, "holds no coarse_label_names"),
        (
            {"fine_label_names.txt": NAMES, "coarse_label_names.txt": b"a\nb\n", "test.bin": bytes(3074),
             "train.bin": bytes(3074) + b"\x01" + bytes(3073)},
            "puts class 0 into two",
        ),
    ],
)  # fmt: skip
def test_archives_of_another_shape_are_refused(tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    path = cifar_archive(tmp_path / "a.tar.gz", files, "x")
    with pytest.raises(InputError, match=says):
        build_shards(CifarSource(str(path)), "train", str(tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    data = cifar10(tmp_path / "whole.tar.gz").read_bytes()
    for cut in (0, 10, len(data) // 2, len(data) - 4):
        (tmp_path / "a.tar.gz").write_bytes(data[:cut])
        with pytest.raises(InputError, match="is cut"):
            CifarSource(str(tmp_path / "a.tar.gz")).samples("train")
    with pytest.raises(InputError, match="there is no archive"):
        CifarSource(str(tmp_path / "none.tar.gz")).samples("train")
