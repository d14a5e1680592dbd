"""safetensors, both ways, bit for bit: a state and, in the file's header, the network it is of."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dist_alexnet.errors import WeightsError
from dist_alexnet.network.spec import load_spec, spec_from
from dist_alexnet.network.weights.files import appearing, check_file, missing_extra
from dist_alexnet.network.weights.function import differences_in_function, told
from dist_alexnet.network.weights.state import Weights, classes_in, fitted, last_weight, shapes_of, usual_pixels

FORMAT, VERSION = "dist-alexnet", "1"


def write_safetensors(weights: Weights, to: Path) -> None:
    """Write the state as fp32, with what one must know to use it as text in the header."""
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise missing_extra("safetensors") from error
    with appearing(to) as partial:
        partial.write_bytes(save(weights.tensors, metadata=_header(weights)))  # save_file keeps others from reading it


def read_safetensors(path: Path, network: str | None = None) -> Weights:
    """Read a state. network: a preset or a YAML file, needed where the header declares none.

    Where both are given they must compute the same; the one that is named is kept. Raises WeightsError, ConfigError.
    """
    check_file(path)
    tensors, header = _read(path)
    if header.get("format") != FORMAT:
        return _without_header(path, tensors, network)
    declared = _declared(path, header, tensors)
    if network is None:
        return declared
    spec = load_spec(network)
    if found := differences_in_function(declared.spec, spec):
        raise WeightsError(
            f"{path} is of network {declared.name}, which computes something else than {network} ({told(found)}): "
            "leave --network away, or name one that computes the same"
        )
    named = replace(declared, name=network, spec=spec)
    return replace(named, tensors=fitted(tensors, shapes_of(named.network), str(path), network))


def _header(weights: Weights) -> dict[str, str]:
    """Every value is JSON but the first two; pixel_std is in the network, and repeated for whoever reads by eye."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": json.dumps(weights.name),
        "network": json.dumps(weights.spec.model_dump(mode="json")),
        "num_classes": json.dumps(weights.num_classes),
        "width": json.dumps(weights.width),
        "dropout": json.dumps(weights.dropout),
        "pixels": json.dumps(weights.pixels),
        "pixel_std": json.dumps(weights.spec.pixel_std_3),
    }


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise missing_extra("safetensors") from error
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())}") from error


def _without_header(path: Path, tensors: dict[str, Tensor], network: str | None) -> Weights:
    if network is None:
        raise WeightsError(f"{path} does not say of which network it is: name a preset or a YAML file with --network")
    spec = load_spec(network)
    weights = Weights(network, spec, classes_in(tensors, last_weight(spec), str(path)), {}, usual_pixels(spec))
    return replace(weights, tensors=fitted(tensors, shapes_of(weights.network), str(path), network))


def _declared(path: Path, header: dict[str, str], tensors: dict[str, Tensor]) -> Weights:
    if header.get("version") != VERSION:
        raise WeightsError(f"{path} has header version {header.get('version')}, expected {VERSION}: export it anew")
    try:
        value: dict[str, Any] = {key: json.loads(header[key]) for key in _header_keys()}
        weights = Weights(
            str(value["name"]),
            spec_from(value["network"], str(path)),
            _number(value, "num_classes", int),
            {},
            _pixels(value["pixels"]),
            _number(value, "width", float),
            None if value["dropout"] is None else _number(value, "dropout", float),
        )
        network = weights.network
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise WeightsError(f"{path} has a header that cannot be read ({error}): export it anew") from error
    return replace(weights, tensors=fitted(tensors, shapes_of(network), str(path), weights.name))


def _header_keys() -> tuple[str, ...]:
    return ("name", "network", "num_classes", "width", "dropout", "pixels")


def _pixels(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of `data` and no others: those of a run are none of a file's business."""
    if surplus := values.keys() - {"image_size", "resize", "mean", "statistics"}:
        raise ValueError(f"pixels has {min(surplus)}, expected image_size, resize, mean and statistics")
    return {**values, "image_size": _number(values, "image_size", int)}


def _number(values: dict[str, Any], key: str, kind: type) -> Any:
    value = values[key]
    if not isinstance(value, int | float) or not isinstance(value, int | kind) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key} is {value!r}, expected a number")
    return value
