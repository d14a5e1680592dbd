"""torchvision's AlexNet, both ways, bit for bit: its state_dict in a .pth file is the state of preset `torchvision`.

Pixels: torchvision gives 0-1 R G B minus a mean, divided by a deviation. Here pixels are 0-255 minus the mean
(`data.mean`), and the network divides them (`pixel_std`): both are 255 times torchvision's figures.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dist_alexnet.errors import WeightsError
from dist_alexnet.network.spec import Conv, FullyConnected, Spec, load_spec
from dist_alexnet.network.weights.files import appearing, check_file
from dist_alexnet.network.weights.function import differences_in_function, told
from dist_alexnet.network.weights.state import Weights, classes_in, fitted, last_weight, shapes_of, usual_pixels

PRESET = "torchvision"
MEAN = (123.675, 116.28, 103.53)  # 255 x (0.485, 0.456, 0.406)
CONVOLUTIONS = ("features.0", "features.3", "features.6", "features.8", "features.10")
FULLY_CONNECTED = ("classifier.1", "classifier.4", "classifier.6")


def write_torchvision(weights: Weights, to: Path) -> None:
    """Write the state_dict of torchvision's AlexNet. Raises WeightsError where the network is not that one."""
    reference = load_spec(PRESET)
    found = differences_in_function(weights.spec, reference)
    if weights.width != 1:
        found.append(f"network.width {weights.width} against 1")
    if weights.pixels["image_size"] != reference.image_size:  # torchvision's pools round down, and it averages to 6 x 6
        found.append(f"data.image_size {weights.pixels['image_size']} against {reference.image_size}")
    if found:
        raise WeightsError(
            f"network {weights.name} is not torchvision's AlexNet ({told(found)}), expected one that computes "
            f"what preset {PRESET} does: export it as safetensors or onnx"
        )
    keys = _keys(weights.spec)
    with appearing(to) as partial:
        torch.save({keys[name]: value for name, value in weights.tensors.items()}, partial)


def read_torchvision(path: Path, network: str = PRESET) -> Weights:
    """Read a state_dict of torchvision's AlexNet with any number of classes; runs none of its author's code.

    network: the preset, or a YAML file that computes the same. Raises WeightsError, ConfigError.
    """
    check_file(path)
    spec = load_spec(network)
    if found := differences_in_function(spec, load_spec(PRESET)):
        raise WeightsError(
            f"network {network} is not torchvision's AlexNet ({told(found)}), expected one that computes what "
            f"preset {PRESET} does: name that"
        )
    keys, tensors = _keys(spec), _state_dict(path)
    num_classes = classes_in(tensors, keys[last_weight(spec)], str(path))
    weights = Weights(network, spec, num_classes, {}, usual_pixels(spec, MEAN))
    shapes = shapes_of(weights.network)
    state = fitted(tensors, {keys[name]: shape for name, shape in shapes.items()}, str(path), network)
    return replace(weights, tensors={name: state[keys[name]] for name in shapes})


def _keys(spec: Spec) -> dict[str, str]:
    """Our names of tensors -> torchvision's."""
    convolutions = [layer.name for layer in spec.layers if isinstance(layer, Conv)]
    connected = [layer.name for layer in spec.layers if isinstance(layer, FullyConnected)]
    layers = zip((*convolutions, *connected), (*CONVOLUTIONS, *FULLY_CONNECTED), strict=True)
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in layers for kind in ("weight", "bias")}


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything for a file that is not its own
        first = " ".join(str(error).split()).split(". ")[0]
        raise WeightsError(f"{path} cannot be read as torch tensors and nothing else: {first}") from error
    if not isinstance(values, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in values.items()
    ):
        raise WeightsError(
            f"{path} holds something else than named tensors, expected the state_dict of torchvision's AlexNet: save "
            "model.state_dict() alone"
        )
    return values
