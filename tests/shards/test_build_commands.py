"""`dist-alexnet shards build ...`, from small archives of the published layouts."""

import hashlib
import sys
from pathlib import Path

import pytest

from dist_alexnet.__main__ import run as run_command
from shards.index import read_index
from tests.shards.archives import cifar10, devkit, parquet_file, train_pictures, train_tar, val_tar
from tests.shards.pictures import jpeg


def run(*arguments: object) -> int:
    return run_command(["shards", "build", *map(str, arguments)])


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_imagenet_then_smaller_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = train_tar(tmp_path / "ILSVRC2012_img_train.tar", train_pictures())
    val = val_tar(tmp_path / "ILSVRC2012_img_val.tar")
    kit = devkit(tmp_path / "ILSVRC2012_devkit_t12.tar.gz")
    to, archives = tmp_path / "set", ("--train", train, "--val", val, "--devkit", kit)
    assert run("imagenet", *archives, "--to", to, "--samples-per-shard", 4, "--workers", 2) == 0
    assert capsys.readouterr().out == (
        f"train: samples 14, classes 3, shards 4, index {to}/train.index.json\n"
        f"val: samples 5, classes 3, shards 2, index {to}/val.index.json\n"
    )
    before = sums(to)
    assert run("imagenet", *archives, "--to", to, "--samples-per-shard", 4) == 0  # harmless
    assert sums(to) == before
    assert run("imagenet", *archives, "--to", tmp_path / "direct", "--resize", 8, "--samples-per-shard", 4) == 0
    again = ("tars", to / "train.index.json", "--to", tmp_path / "small", "--resize", 8)
    assert run(*again) == 0
    small = read_index(f"{tmp_path}/small/train.index.json")
    assert (len(small), small.classes) == (14, read_index(f"{to}/train.index.json").classes)
    assert small.class_info is not None
    assert small.class_info[1] == {"ilsvrc_id": 3, "words": "goldfish, Carassius auratus"}


def test_cifar_and_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cifar", cifar10(tmp_path / "cifar-10-binary.tar.gz"), "--to", tmp_path / "cifar", "--workers", 1) == 0
    folder = tmp_path / "hub" / "data"
    for name in ("train", "validation"):
        parquet_file(folder / f"{name}-00000-of-00001.parquet", [(jpeg(1), None, 0), (jpeg(2), None, 1)], ("a", "b"))
    (tmp_path / "spool").mkdir()
    assert run("parquet", tmp_path / "hub", "--to", tmp_path / "p", "--spool", tmp_path / "spool") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"train: samples 15, classes 10, shards 1, index {tmp_path}/cifar/train.index.json",
        f"val: samples 3, classes 10, shards 1, index {tmp_path}/cifar/val.index.json",
        f"train: samples 2, classes 2, shards 1, index {tmp_path}/p/train.index.json",
        f"val: samples 2, classes 2, shards 1, index {tmp_path}/p/val.index.json",
    ]
    assert not list((tmp_path / "spool").iterdir())


def test_a_terminal_gets_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = cifar10(tmp_path / "cifar-10-binary.tar.gz")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("cifar", archive, "--to", tmp_path / "set", "--samples-per-shard", 5, "--split", "train") == 0
    lines = capsys.readouterr().err.split("\r")
    assert [line.partition(",")[0] for line in lines[1:]] == [
        f"train samples [{'#' * 10 * tars:30}] {5 * tars}/15" for tars in (1, 2, 3)
    ]
    assert lines[-1].endswith("\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("imagenet",), "no archive is named"),
        (("imagenet", "--train", "none.tar"), "the archive none.tar cannot be read"),
        (("imagenet", "--train", "pipe:cat x"), "begins with 'pipe:'"),
        (("imagenet", "--train", "a", "--resize", "8", "--square", "8"), "two ways"),
        (("imagenet", "--train", "a", "--quality", "90"), "--quality is for pictures that are made anew"),
        (("imagenet", "--train", "a", "--resize", "0"), "pictures of 0 pixels"),
        (("cifar", "none.tar.gz"), "there is no archive none.tar.gz"),
        (("tars", "none.index.json"), "there is no index"),
        (("parquet", "none"), "none is no local folder"),
        (("parquet", ".", "--spool", "none"), "there is no folder none"),
    ],
)
def test_what_cannot_be_built_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, "--to", "set") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
