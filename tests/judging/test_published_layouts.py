"""ReaL, ImageNet-V2 and ImageNet-C as they are when unpacked, on tiny stand-ins, by the commands of the docs."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_alexnet.__main__ import run
from dist_alexnet.parallel.mesh import Mesh
from tests.judging.networks import Made, make
from tests.ranks.pictures import Noise

WNIDS = tuple(f"n{number:08d}" for number in (1440764, 1443537, 1484850, 1491361, 1494475, *range(2000001, 2000008)))


@pytest.fixture(scope="module")
def network(alone: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("network"), 1, classes=WNIDS, num_classes=len(WNIDS))


def picture(to: Path, number: int) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(Noise().picture("val", number))


def built(source: Path, to: Path, split: str = "val") -> str:
    assert run(["shards", "build", "folder", str(source), "--to", str(to), "--split", split]) == 0
    return str(to / f"{split}.index.json")


def evaluated(network: Made, shards: str, out: Path, *more: str) -> dict[str, Any]:
    assert run(["evaluate", network.folder, "--shards", shards, "--json", str(out), *more]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 validation pictures in folders of their wnids, two a class."""
    folder = tmp_path_factory.mktemp("val")
    for number in range(24):
        picture(folder / WNIDS[number % 12] / f"ILSVRC2012_val_{number + 1:08d}.JPEG", number)
    return folder


def answers_by_key(network: Made, shards: str, folder: Path) -> dict[str, int]:
    """The likeliest class of each picture."""
    file = folder / "answers.npz"
    assert run(["evaluate", network.folder, "--shards", shards, "--probabilities", str(file)]) == 0
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as said:
        file.unlink()
        return {key.decode(): int(row.argmax()) for key, row in zip(said["keys"], said["probabilities"], strict=True)}


def test_real(network: Made, validation: Path, tmp_path: Path) -> None:
    """Labels that hold the network's answer for all but two pictures, and none for three."""
    shards = built(validation, tmp_path)
    answers = answers_by_key(network, shards, tmp_path)
    real = [
        [answers[f"{WNIDS[number % 12]}_ILSVRC2012_val_{number + 1:08d}"], (number + 5) % 12] for number in range(24)
    ]
    for number in (3, 9):
        real[number] = [(real[number][0] + 1) % 12]
    for number in (4, 5, 20):
        real[number] = []
    (tmp_path / "real.json").write_text(json.dumps(real))
    figures = evaluated(network, shards, tmp_path / "out.json", "--labels", str(tmp_path / "real.json"))
    assert (figures["images"], figures["unlabelled_images"], figures["top1_correct"]) == (21, 3, 19)
    assert figures["labels"] == str(tmp_path / "real.json")
    by_key = {f"{WNIDS[n % 12]}_ILSVRC2012_val_{n + 1:08d}": [WNIDS[c] for c in real[n]] for n in range(24)}
    (tmp_path / "real.json").write_text(json.dumps(by_key))
    assert evaluated(network, shards, tmp_path / "out.json", "--labels", str(tmp_path / "real.json")) == figures


def test_imagenet_v2(network: Made, validation: Path, tmp_path: Path) -> None:
    """Folders 0 to 11, which sort as 0, 1, 10, 11, 2: the same pictures give the same counts as in folders of wnids."""
    for number in range(24):
        source = validation / WNIDS[number % 12] / f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        target = tmp_path / "v2" / str(number % 12) / f"{number:04d}abcdef.jpeg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    by_number = evaluated(network, built(tmp_path / "v2", tmp_path, "v2"), tmp_path / "out.json")
    by_name = evaluated(network, built(validation, tmp_path), tmp_path / "out.json")
    assert by_number["classes_matched"].startswith("by number")
    assert by_number["per_class"] == by_name["per_class"]
    assert 0 < by_name["top5_correct"] < 24
    assert by_number["loss"] == pytest.approx(by_name["loss"], rel=1e-6)


def test_imagenet_c(network: Made, validation: Path, tmp_path: Path) -> None:
    """A folder a corruption and severity, with only some of the classes."""
    for severity in (1, 2):
        for number in range(0, 24, 3):
            wnid = WNIDS[number % 12]
            target = tmp_path / "c" / "fog" / str(severity) / wnid / f"ILSVRC2012_val_{number + 1:08d}.JPEG"
            picture(target, number + severity)
        shards = built(tmp_path / "c" / "fog" / str(severity), tmp_path / "shards", f"fog-{severity}")
        figures = evaluated(network, shards, tmp_path / "out.json")
        assert (figures["images"], figures["classes_matched"]) == (8, "by name")
        assert [row["name"] for row in figures["per_class"]] == [WNIDS[number] for number in (0, 3, 6, 9)]


def test_other_classes_are_said_before_anything_is_evaluated(
    network: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ant", "bee"):
        picture(tmp_path / "insects" / name / "1.jpg", 1)
    shards = built(tmp_path / "insects", tmp_path)
    capsys.readouterr()
    assert run(["evaluate", network.folder, "--shards", shards]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the class 'ant', which is none of the 12 of" in line
