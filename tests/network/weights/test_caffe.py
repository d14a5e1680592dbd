"""Caffe's blobs, in every layout in which they are passed on, give the logits that Caffe gives."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dist_alexnet.errors import WeightsError
from dist_alexnet.network.spec import load_spec
from dist_alexnet.network.weights.caffe import MEAN, read_caffe
from dist_alexnet.network.weights.state import Weights
from dist_alexnet.parallel.mesh import Mesh
from tests.network.weights.drawn import CLASSES, apart, drawn, logits_of, pictures

h5py = pytest.importorskip("h5py")

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
SIDE = 67
Blobs = dict[str, tuple[np.ndarray, np.ndarray]]


def narrow(preset: str, folder: Path) -> tuple[str, Weights]:
    """A preset an eighth as wide, as a YAML file: a file without a header cannot say a width."""
    values = load_spec(preset).model_dump(mode="json")
    values["image_size"] = SIDE
    for layer in values["layers"]:
        for size in ("filters", "units"):
            if isinstance(layer.get(size), int):
                layer[size] //= 8
    path = folder / f"{preset}.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return str(path), drawn(str(path), 1, SIDE)


def blobs_of(weights: Weights) -> Blobs:
    """As Caffe holds them: the first layer's channels are B, G, R."""
    state = {name: value.numpy() for name, value in weights.tensors.items()}
    state["conv1.weight"] = state["conv1.weight"][:, ::-1]
    return {layer: (state[f"{layer}.weight"], state[f"{layer}.bias"]) for layer in LAYERS}


def caffe_forward(blobs: Blobs, bgr: Tensor, pool_first: bool) -> Tensor:
    """bvlc_alexnet, or caffenet (pool_first), from their prototxt: LRN over all maps, k 1; pools round up."""
    at = {layer: [torch.from_numpy(np.ascontiguousarray(blob)) for blob in pair] for layer, pair in blobs.items()}

    def lrn(x: Tensor) -> Tensor:
        return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    x = F.relu(F.conv2d(bgr, *at["conv1"], stride=4))
    x = lrn(pool(x)) if pool_first else pool(lrn(x))
    x = F.relu(F.conv2d(x, *at["conv2"], padding=2, groups=2))
    x = lrn(pool(x)) if pool_first else pool(lrn(x))
    x = F.relu(F.conv2d(x, *at["conv3"], padding=1))
    x = F.relu(F.conv2d(x, *at["conv4"], padding=1, groups=2))
    x = pool(F.relu(F.conv2d(x, *at["conv5"], padding=1, groups=2))).flatten(1)
    return F.linear(F.relu(F.linear(F.relu(F.linear(x, *at["fc6"])), *at["fc7"])), *at["fc8"])


def save_npz(path: Path, blobs: Blobs, weight: str, bias: str, old: bool = False) -> None:
    arrays = {}
    for layer, (values, biases) in blobs.items():
        arrays[f"{layer}{weight}"] = values[None, None] if old and values.ndim == 2 else values
        arrays[f"{layer}{bias}"] = biases[None, None, None] if old else biases
    np.savez(path, **arrays)


def save_hdf5(path: Path, blobs: Blobs, old: bool = False) -> None:
    """As Net::ToHDF5: /data/<layer>/<number>, with groups for layers without blobs; /diff beside it."""
    with h5py.File(path, "w") as file:
        for layer in ("data", "relu1", "drop6"):
            file.create_group(f"data/{layer}")
        for layer, (values, biases) in blobs.items():
            file[f"data/{layer}/0"] = values[None, None] if old and values.ndim == 2 else values
            file[f"data/{layer}/1"] = biases[None, None, None] if old else biases
            file[f"diff/{layer}/0"] = np.zeros_like(values)


FORMS: dict[str, Any] = {
    "dots.npz": lambda path, blobs: save_npz(path, blobs, ".weight", ".bias"),
    "letters.npz": lambda path, blobs: save_npz(path, blobs, "_w", "_b"),
    "words.npz": lambda path, blobs: save_npz(path, blobs, "_weights", "_biases"),
    "numbers.npz": lambda path, blobs: save_npz(path, blobs, "_0", "_1"),
    "old.npz": lambda path, blobs: save_npz(path, blobs, "/0", "/1", old=True),
    "net.caffemodel.h5": save_hdf5,
    "old.caffemodel.h5": lambda path, blobs: save_hdf5(path, blobs, old=True),
}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_layout_is_bit_exact(form: str, tmp_path: Path) -> None:
    network, weights = narrow("bvlc-alexnet", tmp_path)
    FORMS[form](tmp_path / form, blobs_of(weights))
    read = read_caffe(tmp_path / form, network)
    assert list(read.tensors) == list(weights.tensors)
    assert all(torch.equal(read.tensors[key], value) for key, value in weights.tensors.items())
    assert (read.num_classes, read.pixels["mean"]) == (CLASSES, list(MEAN))


@pytest.mark.parametrize("preset", ["bvlc-alexnet", "caffenet"])
def test_the_logits_are_caffes(preset: str, tmp_path: Path, alone: Mesh) -> None:
    network, weights = narrow(preset, tmp_path)
    blobs = blobs_of(weights)
    save_hdf5(tmp_path / "net.h5", blobs)
    rgb = pictures(4, SIDE)
    expected = caffe_forward(blobs, rgb[:, [2, 1, 0]], pool_first=preset == "caffenet")
    assert apart(logits_of(read_caffe(tmp_path / "net.h5", network), alone, rgb), expected) <= 1e-5
    assert apart(caffe_forward(blobs, rgb, preset == "caffenet"), expected) > 0.1  # the order of colours matters
    assert apart(caffe_forward(blobs, rgb[:, [2, 1, 0]], preset != "caffenet"), expected) > 0.01


def test_the_shapes_as_published(tmp_path: Path) -> None:
    """At full size, as Caffe's first release wrote them."""
    shapes = {"conv1": (96, 3, 11, 11), "conv2": (256, 48, 5, 5), "conv3": (384, 256, 3, 3), "conv4": (384, 192, 3, 3)}
    shapes |= {
        "conv5": (256, 192, 3, 3),
        "fc6": (1, 1, 4096, 9216),
        "fc7": (1, 1, 4096, 4096),
        "fc8": (1, 1, 1000, 4096),
    }
    with h5py.File(tmp_path / "net.h5", "w") as file:
        for layer, shape in shapes.items():
            rows = shape[2] if shape[:2] == (1, 1) else shape[0]
            file.create_dataset(f"data/{layer}/0", shape, "f4")  # zeros that take no room
            file.create_dataset(f"data/{layer}/1", (1, 1, 1, rows), "f4")
    read = read_caffe(tmp_path / "net.h5", "bvlc-alexnet")
    assert read.num_classes == 1000
    assert sum(value.numel() for value in read.tensors.values()) == 60_965_224
    assert read.pixels == {"image_size": 227, "resize": 256, "mean": list(MEAN)}


def test_another_form_is_refused(tmp_path: Path) -> None:
    network, weights = narrow("bvlc-alexnet", tmp_path)
    blobs = blobs_of(weights)
    path = tmp_path / "x"
    for content in (b"", b"\x0a\x07CaffeNet", b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"neither HDF5 nor \.npz.*save_hdf5"):
            read_caffe(path, network)
    path.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(WeightsError, match="cannot be read as plain arrays"):
        read_caffe(path, network)
    path.write_bytes(b"\x89HDF\r\n\x1a\n torn")
    with pytest.raises(WeightsError, match="cannot be read as HDF5"):
        read_caffe(path, network)
    save_hdf5(path, blobs)
    with pytest.raises(WeightsError, match="name bvlc-alexnet or caffenet with --network"):
        read_caffe(path, None)
    with pytest.raises(WeightsError, match=r"has 2 columns, expected one.*crosses the groups"):
        read_caffe(path, "alexnet-2012")
    with pytest.raises(WeightsError, match=r"fc8\.weight|conv1\.weight of shape 12 x 3 x 11 x 11, .* 96 x 3 x 11 x 11"):
        read_caffe(path, "bvlc-alexnet")
    del blobs["conv4"]
    save_npz(tmp_path / "less.npz", {**blobs, "conv6": blobs["conv5"]}, "_w", "_b")
    with pytest.raises(
        WeightsError, match=r"lacks conv4\.weight, conv4\.bias and also holds conv6\.weight, conv6\.bias"
    ):
        read_caffe(tmp_path / "less.npz", network)


def test_pickles_and_doubles_are_refused(tmp_path: Path) -> None:
    network, weights = narrow("bvlc-alexnet", tmp_path)
    blobs = blobs_of(weights)
    np.savez(tmp_path / "pickle.npz", conv1_w=np.array([{"a": 1}], dtype=object))
    with pytest.raises(WeightsError, match="cannot be read as plain arrays"):
        read_caffe(tmp_path / "pickle.npz", network)
    save_npz(tmp_path / "double.npz", {key: (a.astype(np.float64), b) for key, (a, b) in blobs.items()}, "_w", "_b")
    with pytest.raises(WeightsError, match=r"conv1\.weight as float64"):
        read_caffe(tmp_path / "double.npz", network)
    save_npz(tmp_path / "whole.npz", {key: (a, b.astype(np.int64)) for key, (a, b) in blobs.items()}, "_w", "_b")
    with pytest.raises(WeightsError, match="conv1_b as int64"):
        read_caffe(tmp_path / "whole.npz", network)
    np.savez(tmp_path / "twice.npz", conv1_w=blobs["conv1"][0], conv1_0=blobs["conv1"][0])
    with pytest.raises(WeightsError, match=r"conv1\.weight twice"):
        read_caffe(tmp_path / "twice.npz", network)
    np.savez(tmp_path / "none.npz")
    with pytest.raises(WeightsError):
        read_caffe(tmp_path / "none.npz", network)


def test_hdf5_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    network, weights = narrow("bvlc-alexnet", tmp_path)
    save_hdf5(tmp_path / "real.h5", blobs_of(weights))
    (tmp_path / "raw").write_bytes(bytes(12 * 3 * 11 * 11 * 4))
    for kind in ("external", "soft", "virtual", "raw"):
        path = tmp_path / f"{kind}.h5"
        with h5py.File(path, "w") as file:
            blobs = file.create_group("data/conv1")
            if kind == "external":
                blobs["0"] = h5py.ExternalLink(str(tmp_path / "real.h5"), "/data/conv1/0")
            elif kind == "soft":
                blobs["0"] = h5py.SoftLink("/data/conv1/1")
            elif kind == "virtual":
                layout = h5py.VirtualLayout((12, 3, 11, 11), "f4")
                layout[:] = h5py.VirtualSource(str(tmp_path / "real.h5"), "data/conv1/0", (12, 3, 11, 11))
                blobs.create_virtual_dataset("0", layout)
            else:
                blobs.create_dataset("0", (12, 3, 11, 11), "f4", external=str(tmp_path / "raw"))
        with pytest.raises(WeightsError, match="has no dataset /data/conv1/0 of its own"):
            read_caffe(path, network)


def test_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, weights = narrow("caffenet", tmp_path)
    save_hdf5(tmp_path / "net.h5", blobs_of(weights))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(WeightsError, match=r"h5py is not installed.*dist-alexnet\[weights\]"):
        read_caffe(tmp_path / "net.h5", network)
