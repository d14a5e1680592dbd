"""Weights through the command line: out of a checkpoint and into another, and what evaluation says of both."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_alexnet import transfer
from dist_alexnet.__main__ import run
from dist_alexnet.checkpoint.commit import Found, read_commit
from dist_alexnet.checkpoint.place import Place
from dist_alexnet.config import config_from
from dist_alexnet.network.spec import load_spec
from dist_alexnet.network.weights.state import Weights
from dist_alexnet.parallel.mesh import Mesh
from shards.errors import StorageFault
from tests.network.weights.drawn import drawn
from tests.ranks.pictures import CLASSES, write_shards

pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return str(folder / "val.index.json")


def checkpoint(folder: Path, preset: str = "alexnet-2012", **pixels: Any) -> tuple[Path, Weights]:
    """A checkpoint of drawn weights, as `import` writes it."""
    weights = drawn(preset, 0.125, 64, dropout=0.25)
    weights = replace(weights, pixels={**weights.pixels, "resize": 72, **pixels})
    config = config_from(
        {
            "network": {"name": preset, "num_classes": weights.num_classes, "width": 0.125, "dropout": 0.25},
            "data": weights.pixels,
        },
        "test",
    )
    transfer.write_checkpoint(weights, config, folder)
    return folder, weights


def of(folder: Path) -> Weights:
    return transfer.read_checkpoint(Found(Place.at(folder), read_commit(Place.at(folder))))


def evaluated(folder: Path, shards: str, out: Path) -> dict[str, Any]:
    assert run(["evaluate", str(folder), "--shards", shards, "--json", str(out)]) == 0
    return json.loads(out.read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("preset", ["alexnet-2012", "alexnet-bn"])
def test_out_and_in_again(
    preset: str, tmp_path: Path, shards: str, alone: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same bits, the same settings, and the same figures."""
    made, weights = checkpoint(tmp_path / "made", preset)
    file, back = tmp_path / "net.safetensors", tmp_path / "back"
    assert run(["export", str(made), "--format", "safetensors", "--to", str(file)]) == 0
    assert run(["import", str(file), "--format", "safetensors", "--to", str(back)]) == 0
    told = capsys.readouterr().out
    assert f"wrote {back}: network {preset}, 7 classes" in told
    assert "train --resume refuses it" in told
    found = of(back)
    assert all(torch.equal(found.tensors[key], value) for key, value in weights.tensors.items())
    assert replace(found, tensors={}) == replace(weights, tensors={})
    first, second = (evaluated(folder, shards, tmp_path / "x.json") for folder in (made, back))
    assert [one["checkpoint"] for said in (first, second) for one in said.pop("inputs")] == [str(made), str(back)]
    assert first == second
    assert first["images"] == 37
    assert first["loss"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "made", "net.safetensors", "x.json"]


def test_onnx_and_the_run_folders_newest_step(tmp_path: Path, alone: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx")
    made, _ = checkpoint(tmp_path / "made")
    step = tmp_path / "run" / "checkpoints" / "step-00000007"
    step.mkdir(parents=True)
    made.rename(step / "g0001")
    for name, source in {"a.onnx": step, "b.onnx": tmp_path / "run"}.items():
        assert run(["export", str(source), "--format", "onnx", "--to", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    onnx.checker.check_model(onnx.load(tmp_path / "a.onnx"))
    assert "minus mean [120.5, 119.0, 101.25]" in capsys.readouterr().out


def test_a_mean_by_name_goes_out_as_numbers(tmp_path: Path, alone: Mesh) -> None:
    made, _ = checkpoint(tmp_path / "made", mean="colour")
    assert of(made).pixels["mean"] == [127.305, 119.715, 104.913]


def test_torchvision_in(tmp_path: Path, alone: Mesh) -> None:
    """At full size; its pixels come with it."""
    weights = drawn("torchvision", 1, 224)
    from dist_alexnet.network.weights.torchvision import write_torchvision

    write_torchvision(weights, tmp_path / "alexnet.pth")
    asked = ["import", str(tmp_path / "alexnet.pth"), "--format", "torchvision", "--to", str(tmp_path / "made")]
    assert run(asked) == 0
    found = of(tmp_path / "made")
    assert found.spec == load_spec("torchvision")
    assert found.pixels == {"image_size": 224, "resize": 256, "mean": [123.675, 116.28, 103.53]}
    assert all(torch.equal(found.tensors[key], value) for key, value in weights.tensors.items())


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(args) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    assert shown.out == ""
    return line


def test_what_is_refused_in_one_line(
    tmp_path: Path, alone: Mesh, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = checkpoint(tmp_path / "made")
    free, taken = str(tmp_path / "free"), tmp_path / "taken"
    taken.write_text("precious")
    out, in_ = ["export", str(made), "--to", free], ["import", str(taken), "--to", free]
    assert "'pickle', expected safetensors, torchvision, onnx" in refused([*out, "--format", "pickle"], capsys)
    assert "'onnx', expected safetensors, torchvision, caffe" in refused([*in_, "--format", "onnx"], capsys)
    assert "cannot be read as safetensors" in refused([*in_, "--format", "safetensors"], capsys)
    assert "neither HDF5 nor" in refused([*in_, "--format", "caffe", "--network", "caffenet"], capsys)
    assert "expected a preset" in refused([*in_, "--format", "torchvision", "--network", "no-such"], capsys)
    assert "is not torchvision's AlexNet" in refused([*out, "--format", "torchvision"], capsys)
    assert "no committed checkpoint" in refused(["export", str(tmp_path), "--to", free, "--format", "onnx"], capsys)
    for target in (str(taken), str(made)):
        assert "is not overwritten" in refused(["export", str(made), "--format", "safetensors", "--to", target], capsys)
        assert "is not overwritten" in refused(
            ["import", str(taken), "--format", "safetensors", "--to", target], capsys
        )
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "runs in one process, found 2" in refused([*out, "--format", "safetensors"], capsys)
    assert taken.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "taken"]


def test_classes_of_the_set_are_checked_as_always(
    tmp_path: Path, shards: str, alone: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = drawn("alexnet-2012", 0.125, 64)
    few = replace(weights, num_classes=CLASSES - 1)
    few = replace(
        few, tensors={**few.tensors, **{k: few.tensors[k][: CLASSES - 1] for k in ("fc8.weight", "fc8.bias")}}
    )
    config = config_from(
        {"network": {"num_classes": CLASSES - 1, "width": 0.125}, "data": {"image_size": 64, "resize": 72}}, "test"
    )
    transfer.write_checkpoint(few, config, tmp_path / "few")
    said = refused(["evaluate", str(tmp_path / "few"), "--shards", shards], capsys)
    assert f"have {CLASSES} classes, {tmp_path}/few knows {CLASSES - 1}" in said


def test_the_formats_libraries_are_optional() -> None:
    code = "import sys; sys.modules.update(onnx=None, h5py=None, safetensors=None); import dist_alexnet.transfer"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_that_fails_half_way_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run_folder: Path, *_: object, **__: object) -> None:
        (run_folder / "checkpoints").mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(transfer, "save", broken)
    with pytest.raises(StorageFault, match=r"made cannot be written: disk full"):
        checkpoint(tmp_path / "made")
    assert list(tmp_path.iterdir()) == []
