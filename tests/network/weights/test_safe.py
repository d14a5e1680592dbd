"""safetensors carries a state bit for bit, and says in its header of which network it is."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_alexnet.errors import ConfigError, WeightsError
from dist_alexnet.network.spec import load_spec
from dist_alexnet.network.weights.safe import read_safetensors, write_safetensors
from dist_alexnet.network.weights.state import Weights
from shards.errors import StorageFault
from tests.network.weights.drawn import CLASSES, drawn

safetensors = pytest.importorskip("safetensors")
from safetensors.torch import load_file, save_file  # noqa: E402


def same(one: Weights, other: Weights) -> bool:
    """The same in all things, tensors by their bits."""
    assert list(one.tensors) == list(other.tensors)
    bits = all(
        torch.equal(value.view(torch.int32), other.tensors[key].view(torch.int32)) for key, value in one.tensors.items()
    )
    return bits and replace(one, tensors={}) == replace(other, tensors={})


@pytest.mark.parametrize("preset", ["alexnet-2012", "alexnet-bn", "torchvision", "cifar-11pct"])
def test_there_and_back_is_the_same(preset: str, tmp_path: Path) -> None:
    weights = drawn(preset, dropout=0.25)
    weights.tensors[next(iter(weights.tensors))].view(-1)[:2] = torch.tensor(
        [-0.0, 1e-42]
    )  # what arithmetic would lose
    write_safetensors(weights, tmp_path / "net.safetensors")
    assert same(read_safetensors(tmp_path / "net.safetensors"), weights)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    assert (tmp_path / "net.safetensors").stat().st_mode & 0o044  # others may read it where the umask lets them


def test_the_header_is_for_everybody(tmp_path: Path) -> None:
    write_safetensors(drawn("torchvision"), tmp_path / "net.safetensors")
    with safetensors.safe_open(tmp_path / "net.safetensors", framework="np") as file:
        header = file.metadata()
    assert header["format"] == "dist-alexnet"
    assert json.loads(header["pixel_std"]) == [58.395, 57.12, 57.375]
    assert json.loads(header["pixels"])["mean"] == [120.5, 119.0, 101.25]
    assert json.loads(header["num_classes"]) == CLASSES
    assert load_spec("torchvision").model_dump(mode="json") == json.loads(header["network"])


def test_a_file_without_header_needs_a_network(tmp_path: Path) -> None:
    path, weights = tmp_path / "plain.safetensors", drawn("cifar-11pct", 1, 24)
    save_file(weights.tensors, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"does not say of which network .* --network"):
        read_safetensors(path)
    read = read_safetensors(path, "cifar-11pct")
    assert same(replace(read, pixels=weights.pixels), weights)
    assert read.pixels == {"image_size": 24, "resize": 32}
    assert read.num_classes == CLASSES


def test_half_precision_is_widened_and_double_refused(tmp_path: Path) -> None:
    weights = drawn("cifar-18pct", 1)
    halves = {key: value.to(torch.bfloat16) for key, value in weights.tensors.items()}
    save_file(halves, tmp_path / "half.safetensors")
    read = read_safetensors(tmp_path / "half.safetensors", "cifar-18pct")
    assert all(torch.equal(read.tensors[key], value.float()) for key, value in halves.items())
    save_file(
        {**weights.tensors, "conv2.bias": weights.tensors["conv2.bias"].double()}, tmp_path / "double.safetensors"
    )
    with pytest.raises(WeightsError, match=r"conv2\.bias as float64, expected float32"):
        read_safetensors(tmp_path / "double.safetensors", "cifar-18pct")


def test_a_named_network_must_compute_the_same(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    write_safetensors(drawn("alexnet-2012"), path)
    assert read_safetensors(path, "net-170").name == "net-170"
    with pytest.raises(WeightsError, match=r"computes something else than net-148 \(layer 2: lrn against max_pool"):
        read_safetensors(path, "net-148")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conv2.bias": None, "fc7.weight": None}, r"lacks conv2\.bias, fc7\.weight, expected exactly"),
        ({"conv9.bias": torch.zeros(2)}, r"also holds conv9\.bias, expected exactly"),
        ({"conv2.bias": None, "conv9.bias": torch.zeros(2)}, r"lacks conv2\.bias and also holds conv9\.bias"),
        ({"conv3.weight": torch.zeros(48, 32, 5, 5)}, r"conv3\.weight of shape 48 x 32 x 5 x 5, .* 48 x 32 x 3 x 3"),
        ({"fc8.bias": torch.full((CLASSES,), torch.nan)}, r"values of fc8\.bias that are not finite"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    write_safetensors(drawn("alexnet-2012"), path)
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = {key: value for key, value in {**load_file(path), **change}.items() if value is not None}
    save_file(tensors, path, metadata=header)
    with pytest.raises(WeightsError, match=said) as error:
        read_safetensors(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"version": "9"}, "header version 9, expected 1"),
        ({"width": "[]"}, "width is"),
        ({"width": "Infinity"}, "cannot be read"),
        ({"num_classes": "true"}, "num_classes is True"),
        ({"num_classes": "-3"}, "num_classes is -3"),
        ({"pixels": '{"train": "x", "image_size": 83}'}, "pixels has train"),
        ({"pixels": "7"}, "cannot be read"),
        ({"network": "{"}, "cannot be read"),
        ({"network": '{"columns": 3}'}, "columns"),
    ],
)
def test_a_header_that_was_changed(header: dict[str, str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    write_safetensors(drawn("cifar-18pct"), path)
    with safetensors.safe_open(path, framework="pt") as file:
        changed = {**file.metadata(), **header}
    save_file(load_file(path), path, metadata=changed)
    with pytest.raises((WeightsError, ConfigError), match=said):
        read_safetensors(path)


def test_bytes_that_are_no_file_of_that_kind(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04", b"\xff" * 64):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be read as safetensors"):
            read_safetensors(tmp_path / "x")
    with pytest.raises(WeightsError, match="missing, expected a file"):
        read_safetensors(tmp_path / "y")
    with pytest.raises(WeightsError, match="a folder, expected a file"):
        read_safetensors(tmp_path)


def test_nothing_is_overwritten_and_nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "taken"
    taken.write_text("precious")
    with pytest.raises(WeightsError, match="is there already and is not overwritten"):
        write_safetensors(drawn("cifar-18pct"), taken)
    with pytest.raises(WeightsError, match="its folder is missing"):
        write_safetensors(drawn("cifar-18pct"), tmp_path / "no" / "x")

    def half_written(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(StorageFault, match="x cannot be written: disk full"):
        write_safetensors(drawn("cifar-18pct"), tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert taken.read_text() == "precious"


def test_a_missing_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(WeightsError, match=r"safetensors is not installed.*pip install 'dist-alexnet\[weights\]'"):
        write_safetensors(drawn("cifar-18pct"), tmp_path / "x")
