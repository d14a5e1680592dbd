"""Caffe's AlexNet and CaffeNet, inwards: blobs from HDF5 (as `Net.save_hdf5` writes) or from an .npz.

Caffe sees 0-255 pixels in the order B, G, R: the first convolution's input channels are turned round. Its response norm
crosses the groups and has k = 1, which presets bvlc-alexnet and caffenet say. The mean image lies in a file of its own.
"""

import re
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_alexnet.errors import WeightsError
from dist_alexnet.network.spec import Conv, Spec, load_spec
from dist_alexnet.network.weights.files import check_file, missing_extra
from dist_alexnet.network.weights.state import Weights, classes_in, fitted, last_weight, shapes_of, usual_pixels

PRESETS = "bvlc-alexnet or caffenet"
MEAN = (122.679, 116.669, 104.007)  # R, G, B: Caffe's mean image of ILSVRC-2012, averaged over its pixels
KINDS = {"weight": ("weight", "weights", "w", "0"), "bias": ("bias", "biases", "b", "1")}
_BLOB = re.compile(r"(?P<layer>.+)[._/](?P<kind>[A-Za-z]+|[01])")


def read_caffe(path: Path, network: str | None) -> Weights:
    """Read blobs as `network` (a preset or a YAML file of one column). Raises WeightsError, ConfigError."""
    check_file(path)
    if network is None:
        raise WeightsError(f"{path} does not say of which network it is: name {PRESETS} with --network")
    spec = load_spec(network)
    if spec.columns != 1:
        raise WeightsError(
            f"network {network} has {spec.columns} columns, expected one, because Caffe's response norm crosses the "
            f"groups: name {PRESETS}"
        )
    tensors = {name: torch.from_numpy(blob) for name, blob in _named(path, _blobs(path)).items()}
    tensors = {name: _without_leading_ones(name, blob, spec) for name, blob in tensors.items()}
    first = f"{next(layer.name for layer in spec.layers if isinstance(layer, Conv))}.weight"
    if first in tensors and tensors[first].dim() == 4:
        tensors[first] = tensors[first].flip(1)  # B, G, R -> R, G, B
    weights = Weights(network, spec, classes_in(tensors, last_weight(spec), str(path)), {}, usual_pixels(spec, MEAN))
    return replace(weights, tensors=fitted(tensors, shapes_of(weights.network), str(path), network))


def _blobs(path: Path) -> dict[str, np.ndarray]:
    """Arrays by their name in the file, such as conv1/0."""
    with path.open("rb") as file:
        start = file.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        return dict(_hdf5(path))
    if start[:4] == b"PK\x03\x04":
        return _npz(path)
    raise WeightsError(
        f"{path} is neither HDF5 nor .npz, expected one of them: load the .caffemodel in Caffe and call "
        "net.save_hdf5('weights.caffemodel.h5')"
    )


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path} cannot be read as plain arrays: {' '.join(str(error).split())}") from error


def _hdf5(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        import h5py
    except ImportError as error:
        raise missing_extra("h5py") from error
    try:
        with h5py.File(path, "r") as file:
            data = _inside(file, "data", h5py.Group, path)
            for layer in data:
                blobs = _inside(data, layer, h5py.Group, path)
                for number in blobs:
                    yield f"{layer}/{number}", np.asarray(_inside(blobs, number, h5py.Dataset, path))
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as HDF5: {' '.join(str(error).split())}") from error


def _inside(group: Any, name: str, kind: type, path: Path) -> Any:
    """A member that lies in this file: HDF5 can also point into others, which could be any file of the reader's."""
    import h5py

    link = group.get(name, getlink=True)
    member = group[name] if isinstance(link, h5py.HardLink) else None
    if isinstance(member, h5py.Dataset) and (member.external or member.is_virtual):
        member = None
    if not isinstance(member, kind):
        raise WeightsError(
            f"{path} has no {kind.__name__.lower()} {group.name.rstrip('/')}/{name} of its own, expected blobs such as "
            "/data/conv1/0 as net.save_hdf5 writes them: save it anew"
        )
    return member


def _named(path: Path, blobs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By our names: conv1/0, conv1_0, conv1_w, conv1_weights, conv1.weight are all conv1.weight."""
    kinds = {form: kind for kind, forms in KINDS.items() for form in forms}
    named: dict[str, np.ndarray] = {}
    for key, blob in blobs.items():
        found = _BLOB.fullmatch(key)
        kind = kinds.get(found["kind"].lower()) if found else None
        name = f"{found['layer']}.{kind}" if found and kind else key
        if name in named:
            raise WeightsError(f"{path} holds {name} twice, once as {key}, expected each blob once: remove one")
        if blob.dtype.kind != "f":
            raise WeightsError(f"{path} holds {key} as {blob.dtype}, expected float32: convert it first")
        named[name] = np.ascontiguousarray(blob, dtype=blob.dtype.newbyteorder("="))
    if not named:
        raise WeightsError(f"{path} holds no blobs, expected such as /data/conv1/0 (HDF5) or conv1_0 (.npz)")
    return named


def _without_leading_ones(name: str, blob: Tensor, spec: Spec) -> Tensor:
    """Old Caffe keeps every blob in four dimensions: 1 x 1 x 4096 x 9216, or 1 x 1 x 1 x 96."""
    convolutions = {layer.name for layer in spec.layers if isinstance(layer, Conv)}
    layer, _, kind = name.rpartition(".")
    dims = 1 if kind == "bias" else 4 if layer in convolutions else 2
    while blob.dim() > dims and blob.shape[0] == 1:
        blob = blob[0]
    return blob
