import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.build import build_shards
from shards.errors import InputError
from shards.index import read_index
from shards.reader import ShardReader
from shards.sources.imagenet import ImageNetSource
from shards.sources.resized import ResizedSource
from tests.shards.archives import (
    IDS,
    TRUTH,
    WNIDS,
    WORDS,
    devkit,
    meta_mat,
    tar_bytes,
    train_pictures,
    train_tar,
    val_tar,
)
from tests.shards.pictures import jpeg, special, write_tar


def archives(folder: Path) -> ImageNetSource:
    """The three downloads, whole."""
    train = train_tar(folder / "ILSVRC2012_img_train.tar", train_pictures())
    val = val_tar(folder / "ILSVRC2012_img_val.tar")
    return ImageNetSource(str(train), str(val), str(devkit(folder / "ILSVRC2012_devkit_t12.tar.gz")))


def contents(index: Any) -> dict[str, tuple[int, bytes]]:
    return {raw.key: (raw.label, raw.jpeg) for raw in ShardReader(index).read(range(len(index)))}


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_train_keeps_every_byte_under_sorted_wnids(tmp_path: Path, tar_format: int) -> None:
    pictures = train_pictures()
    train = train_tar(tmp_path / "train.tar", dict(reversed(pictures.items())), tar_format)
    index = build_shards(ImageNetSource(str(train)), "train", str(tmp_path / "set"), samples_per_shard=4)
    assert index.classes == WNIDS
    assert index.class_info is None
    assert contents(index) == {
        name.removesuffix(".JPEG"): (label, data)
        for label, wnid in enumerate(WNIDS)
        for name, data in pictures[wnid].items()
    }


def test_val_has_the_devkits_labels_and_the_index_its_numbers(tmp_path: Path) -> None:
    source = archives(tmp_path)
    for split in ("train", "val"):
        build_shards(source, split, str(tmp_path / "set"))
    index = read_index(str(tmp_path / "set" / "val.index.json"))
    wnid = dict(zip(IDS, WNIDS, strict=True))
    assert contents(index) == {
        f"ILSVRC2012_val_{number:08d}": (WNIDS.index(wnid[ilsvrc_id]), jpeg(1000 + number))
        for number, ilsvrc_id in enumerate(TRUTH, start=1)
    }
    assert index.class_info == tuple({"ilsvrc_id": i, "words": words} for i, words in zip(IDS, WORDS, strict=True))
    assert read_index(str(tmp_path / "set" / "train.index.json")).class_info == index.class_info


def test_how_the_archive_was_packed_does_not_matter(tmp_path: Path) -> None:
    pictures = train_pictures()
    other = {wnid: dict(reversed(files.items())) for wnid, files in reversed(pictures.items())}
    sums = []
    for name, content in (("a", pictures), ("b", other)):
        source = ImageNetSource(str(train_tar(tmp_path / f"{name}.tar", content)))
        index = build_shards(source, "train", str(tmp_path / name), samples_per_shard=5)
        sums.append([row.sha256 for row in index.shards])
    assert sums[0] == sums[1]


def test_resizing_makes_rgb_jpeg_of_odd_files_too(tmp_path: Path) -> None:
    source = archives(tmp_path)
    short = build_shards(ResizedSource(source, 8), "train", str(tmp_path / "short"))
    square = build_shards(ResizedSource(source, 8, square=True, quality=90), "train", str(tmp_path / "square"))
    sizes = set()
    for index in (short, square):
        for _, data in contents(index).values():
            with Image.open(io.BytesIO(data)) as image:
                assert (image.format, image.mode) == ("JPEG", "RGB")
                sizes.add((index is square, *image.size))
    assert sizes == {(False, 8, 8), (False, 11, 8), (True, 8, 8)}  # 12 x 12 and 14 x 10
    assert short.built_from != square.built_from


def test_bytes_that_are_no_picture_are_refused(tmp_path: Path) -> None:
    pictures = train_pictures()
    pictures[WNIDS[1]][f"{WNIDS[1]}_5.JPEG"] = b"<html>404</html>"
    source = ImageNetSource(str(train_tar(tmp_path / "train.tar", pictures)))
    with pytest.raises(InputError, match=rf"'{WNIDS[1]}_5' at byte \d+ of .*train\.tar is neither JPEG nor PNG"):
        build_shards(source, "train", str(tmp_path / "set"))
    assert not list((tmp_path / "set").iterdir())


def class_tar(**changes: Any) -> bytes:
    content: list[tuple[str | tarfile.TarInfo, bytes]] = [("n01440764_1.JPEG", jpeg(1)), ("n01440764_2.JPEG", jpeg(2))]
    return tar_bytes(changes.get("content", content) + changes.get("more", []))


def damaged(at: int, data: bytes = bytes(512)) -> bytes:
    whole = class_tar()
    return whole[:at] + data + whole[at + len(data) :]


SECOND = 512 + 512 * -(-len(jpeg(1)) // 512)  # where the second header of class_tar() begins


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([("ILSVRC2012_val_00000001.JPEG", jpeg(1))], "where one tar a class"),
        ([("n01440764.tar.gz", class_tar())], "where one tar a class"),
        ([("n01440764.tar", class_tar()), ("n01440764.tar", class_tar())], r"'n01440764\.tar' twice"),
        ([], "is empty"),
        ([("n01440764.tar", class_tar(content=[]))], "holds no picture"),
        ([("n01440764.tar", class_tar(more=[("n01440764_1.JPEG", jpeg(3))]))], "'n01440764_1' comes twice"),
        ([("n01440764.tar", class_tar(more=[("n01443537_1.JPEG", jpeg(3))]))], "where n01440764_<number>"),
        ([("n01440764.tar", class_tar(more=[("n01440764_3.png", jpeg(3))]))], "where n01440764_<number>"),
        ([("n01440764.tar", class_tar(more=[("n01440764_3.JPEG", b"")]))], "which is empty"),
        ([("n01440764.tar", class_tar(more=[("../n01440764_3.JPEG", jpeg(3))]))], "a name that leaves"),
        ([("n01440764.tar", class_tar(more=[("/n01440764_3.JPEG", jpeg(3))]))], "a name that leaves"),
        ([("n01440764.tar", class_tar(more=[(special("n01440764_3.JPEG", tarfile.SYMTYPE, "x"), b"")]))], "a link to"),
        ([("n01440764.tar", class_tar(more=[(special("n01440764_3.JPEG", tarfile.CHRTYPE), b"")]))], "no plain file"),
        ([(special("n01440764.tar", tarfile.LNKTYPE, "/etc/passwd"), b"")], "a link to '/etc/passwd'"),
        ([("n01440764.tar", damaged(SECOND))], "damaged header at byte"),
        ([("n01440764.tar", damaged(SECOND, b"\xff" * 512))], "damaged header at byte"),
        ([("n01440764.tar", damaged(0, b"\xff" * 512))], "damaged header at byte|no plain tar"),
        ([("n01440764.tar", class_tar()[:SECOND]), ("n01443537.tar", class_tar())], "is cut|where n01440764_"),
        ([("n01440764.tar", class_tar()[: SECOND + 600]), ("n01443537.tar", class_tar())], "is cut"),
        ([("n01440764.tar", b"")], "cut|no plain tar|n01440764"),
    ],
)
def test_train_archives_of_another_shape_are_refused(tmp_path: Path, content: list[Any], says: str) -> None:
    path = write_tar(tmp_path / "train.tar", content, tarfile.GNU_FORMAT)
    with pytest.raises(InputError, match=says) as error:
        build_shards(ImageNetSource(str(path)), "train", str(tmp_path / "set"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "set").exists()


def test_every_cut_of_the_train_archive_is_refused(tmp_path: Path) -> None:
    data = train_tar(tmp_path / "whole.tar", train_pictures(2)).read_bytes()
    path = tmp_path / "train.tar"
    end = len(data.rstrip(b"\0"))
    for cut in [0, 100, 512, 700, *np.random.default_rng(0).integers(512, end, 40).tolist()]:
        path.write_bytes(data[:cut])
        with pytest.raises(InputError, match=r"train\.tar"):
            build_shards(ImageNetSource(str(path)), "train", str(tmp_path / "set"))


def test_places_that_cannot_be_read_by_position_are_refused(tmp_path: Path) -> None:
    for url, says in (("s3://bucket/train.tar", "copy it here first"), (str(tmp_path / "none.tar"), "cannot be read")):
        with pytest.raises(InputError, match=says):
            ImageNetSource(url).samples("train")
    (tmp_path / "train.tar").write_bytes(b"\x1f\x8b" + bytes(3000))
    with pytest.raises(InputError, match="compressed or no plain tar"):
        ImageNetSource(str(tmp_path / "train.tar")).samples("train")
    with pytest.raises(InputError, match="no archive for split 'test'"):
        archives(tmp_path).samples("test")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"truth": "1\n2\n3\n"}, r"holds 'ILSVRC2012_val_00000004\.JPEG', but the devkit .* the pictures 1 to 3"),
        ({"truth": "1\n" * 6}, "holds 5 pictures, but the devkit .* has the classes of 6"),
        ({"truth": "1\n2\n9\n1\n1\n"}, "'9' in line 3"),
        ({"truth": "1\n\n2\n1\n1\n1\n"}, "'' in line 2"),
        ({"truth": "n01440764\n"}, "'n01440764' in line 1"),
        ({"truth": "1\n2\n1001\n1\n1\n"}, "'1001' in line 3"),
        ({"meta": b"no file of MATLAB"}, r"meta\.mat that cannot be read"),
        ({"meta": meta_mat()[:-9]}, r"meta\.mat that cannot be read"),
        ({"meta": meta_mat(wnids=("n1", *WNIDS[1:]))}, "WNID 'n1'"),
        ({"meta": meta_mat(ids=(1, 1, 2))}, "names a class twice"),
        ({"leave_out": "data/meta.mat"}, r"holds no data/meta\.mat"),
        ({"leave_out": "data/ILSVRC2012_validation_ground_truth.txt"}, "holds no data/ILSVRC2012_validation"),
    ],
)
def test_devkits_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    kit = devkit(tmp_path / "kit.tar.gz", **change)
    source = ImageNetSource(val=str(val_tar(tmp_path / "val.tar")), devkit=str(kit))
    with pytest.raises(InputError, match=says) as error:
        build_shards(source, "val", str(tmp_path / "set"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "set").exists()


def test_other_mismatches_of_the_three_archives(tmp_path: Path) -> None:
    kit, val = str(devkit(tmp_path / "kit.tar.gz")), str(val_tar(tmp_path / "val.tar"))
    with pytest.raises(InputError, match="give --devkit"):
        ImageNetSource(val=val).samples("val")
    fewer = {wnid: files for wnid, files in train_pictures().items() if wnid != WNIDS[1]}
    train = str(train_tar(tmp_path / "train.tar", fewer))
    with pytest.raises(InputError, match=r"has 2 classes where the devkit has 3 .*n01443537"):
        ImageNetSource(train, devkit=kit).samples("train")
    with pytest.raises(InputError, match="where ILSVRC2012_val_<number>"):
        ImageNetSource(val=train, devkit=kit).samples("val")
    twice = write_tar(tmp_path / "twice.tar", [("ILSVRC2012_val_00000001.JPEG", jpeg(1))] * 5)
    with pytest.raises(InputError, match="comes twice"):
        build_shards(ImageNetSource(val=str(twice), devkit=kit), "val", str(tmp_path / "set"))
    for data in (b"", b"no gzip", Path(kit).read_bytes()[:-30]):
        (tmp_path / "bad.tar.gz").write_bytes(data)
        with pytest.raises(InputError, match="is cut"):
            ImageNetSource(val=val, devkit=str(tmp_path / "bad.tar.gz")).samples("val")
    with pytest.raises(InputError, match="there is no archive"):
        ImageNetSource(val=val, devkit=str(tmp_path / "none.tar.gz")).samples("val")
