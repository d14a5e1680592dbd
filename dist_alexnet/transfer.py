"""The story of weights in and out: from a checkpoint to a file of another format, and from such a file to a checkpoint.

Both run in one process and make something new: nothing is ever overwritten.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from dist_alexnet.checkpoint.commit import Found
from dist_alexnet.checkpoint.store import find, load, save, versions
from dist_alexnet.config import Config, config_from
from dist_alexnet.crash import say_error
from dist_alexnet.engine import Fragment
from dist_alexnet.environment import World, read_world
from dist_alexnet.errors import LayoutError, WeightsError
from dist_alexnet.job import network_of
from dist_alexnet.network.sizes import Network
from dist_alexnet.network.weights.caffe import read_caffe
from dist_alexnet.network.weights.files import appearing, check_free
from dist_alexnet.network.weights.onnx_file import write_onnx
from dist_alexnet.network.weights.safe import read_safetensors, write_safetensors
from dist_alexnet.network.weights.state import State, Weights
from dist_alexnet.network.weights.torchvision import PRESET, read_torchvision, write_torchvision
from dist_alexnet.parallel.layout import Layout
from dist_alexnet.parallel.start import distributed
from dist_alexnet.trained import declared, same_statistics

WRITERS: dict[str, Callable[[Weights, Path], None]] = {
    "safetensors": write_safetensors,
    "torchvision": write_torchvision,
    "onnx": write_onnx,
}
READERS: dict[str, Callable[[Path, str | None], Weights]] = {
    "safetensors": read_safetensors,
    "torchvision": lambda file, network: read_torchvision(file, network or PRESET),
    "caffe": read_caffe,
}


def export_checkpoint(checkpoint: str | Path, form: str, to: Path) -> list[str]:
    """Write the weights of a checkpoint (path or URL of a step or a run) to a file; returns what to say about it.

    Raises WeightsError, CheckpointError, ConfigError, LayoutError, or StorageFault.
    """
    write = _chosen(WRITERS, form)
    world = _alone("export")
    check_free(to)
    with distributed(world):
        found, passed_over = find(checkpoint)
        for line in passed_over:
            say_error(f"passed over: {line}", only_rank_0=True)
        weights = read_checkpoint(found)
    write(weights, to)
    return [_receipt(to, weights), *_pixels_told(weights, form)]


def import_weights(file: Path, form: str, network: str | None, to: Path) -> list[str]:
    """Make a checkpoint of the weights in a file, for `evaluate`; returns what to say about it.

    Raises WeightsError, ConfigError, LayoutError, or StorageFault.
    """
    read = _chosen(READERS, form)
    world = _alone("import")
    check_free(to)
    weights = read(file, network)
    config = _config_of(weights, file)
    with distributed(world):
        write_checkpoint(weights, config, to)
    return [
        _receipt(to, weights),
        f"pixels of 0-255, short side {config.data.resize}, centre {config.data.image_size}, minus mean "
        f"{config.data.mean}, divided by {weights.spec.pixel_std}",
        "weights only, for evaluate and for finetune.from of a new run: train --resume refuses it, because it has no "
        "momentum and is of no run",
    ]


def read_checkpoint(found: Found) -> Weights:
    """The whole weights of a checkpoint, in one process. Raises CheckpointError or ConfigError."""
    config, spec = declared(found)
    network = network_of(config, spec)
    tensors = {tensor.name: torch.empty(tensor.shape) for tensor in (*network.tensors, *network.statistics)}
    load(found, _fragments(network, tensors))
    return Weights(
        config.network.name,
        spec,
        config.network.num_classes,
        tensors,
        _pixels_of(found, config),
        config.network.width,
        config.network.dropout,
    )


def write_checkpoint(weights: Weights, config: Config, to: Path) -> None:
    """A checkpoint of step 0 at `to`, which is there whole or not at all. Holds weights and running statistics only."""
    state = {
        "config": config.model_dump(mode="json"),
        "network": weights.spec.model_dump(mode="json"),
    }
    with appearing(to) as partial, TemporaryDirectory(dir=partial.parent, prefix=f".{to.name}.") as scratch:
        made = save(
            Path(scratch),
            _fragments(weights.network, weights.tensors),
            step=0,
            generation=1,
            layout=asdict(Layout()),
            versions=versions(),
            state=state,
        )
        Path(made.url).rename(partial)


def _fragments(network: Network, tensors: State) -> Iterator[Fragment]:
    for tensor in network.tensors:
        yield Fragment(tensor.name, "weight", tensors[tensor.name].view(-1), 0, tensor.elements)
    for tensor in network.statistics:
        yield Fragment(tensor.name, "statistic", tensors[tensor.name].view(-1), 0, tensor.elements)


def _pixels_of(found: Found, config: Config) -> dict[str, Any]:
    """What makes pixels this network's input; the mean as numbers, unless it is an image."""
    data = config.data
    pixels: dict[str, Any] = {"image_size": data.image_size, "resize": data.resize}
    if data.mean == "image":
        return {**pixels, "mean": "image", "statistics": data.statistics}
    mean = same_statistics(found, config).mean if data.mean == "colour" else data.mean
    return {**pixels, "mean": list(mean)}


def _config_of(weights: Weights, file: Path) -> Config:
    network = {"name": weights.name, "num_classes": weights.num_classes, "width": weights.width}
    values = {"network": {**network, "dropout": weights.dropout}, "data": weights.pixels}
    return config_from(values, str(file))


def _receipt(to: Path, weights: Weights) -> str:
    return (
        f"wrote {to}: network {weights.name}, {weights.num_classes} classes, {weights.network.parameters:,} parameters"
    )


def _pixels_told(weights: Weights, form: str) -> list[str]:
    mean, std = weights.pixels["mean"], weights.spec.pixel_std_3
    if form == "onnx":
        return [f"input pixels: R, G, B of 0-255 minus mean {mean}; the division by {weights.spec.pixel_std} is inside"]
    if form == "torchvision" and not isinstance(mean, str):
        unit = [", ".join(f"{value / 255:.6g}" for value in values) for values in (mean, std)]
        return [f"for pixels of 0-1: Normalize(mean=[{unit[0]}], std=[{unit[1]}])"]
    return [f"pixels of 0-255, minus mean {mean}, divided by {weights.spec.pixel_std}"]


def _chosen(known: dict[str, Any], form: str) -> Any:
    if form not in known:
        raise WeightsError(f"--format is {form!r}, expected {', '.join(known)}: choose one of them")
    return known[form]


def _alone(command: str) -> World:
    world = read_world()
    if world.world_size > 1:
        raise LayoutError(f"{command} runs in one process, found {world.world_size}: start it without a launcher")
    return world
