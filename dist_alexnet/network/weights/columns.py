"""Two columns apart, together, and as one grouped net.

A state holds both columns' filters one after the other, so the weights of a two-column net are, as they are, those of
grouped convolutions: nothing is moved. What can differ is the function: a response norm stays inside a column, and in a
net of one column it crosses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dist_alexnet.errors import WeightsError
from dist_alexnet.network.sizes import Network
from dist_alexnet.network.spec import Conv, FullyConnected, Local, ResponseNorm, Spec
from dist_alexnet.network.weights.state import State, fitted, shapes_of

COLUMNS = "ab"  # the columns' names in 2012: conv1a, conv1b


@dataclass(frozen=True)
class Apart:
    """A state by columns: "conv1a.weight", ... and "conv1b.weight", ...; `shared`: the last layer, of no column."""

    columns: tuple[State, ...]
    shared: State


def split_columns(network: Network, state: State) -> Apart:
    """Each column's rows of every tensor, under the names of 2012 (conv1a, conv1b; fc8 stays whole). Views, no copies.

    A row that reads all columns (conv3, fc6 ...) keeps its inputs of both, a's before b's.
    """
    shared = _shared(network)
    columns: tuple[State, ...] = tuple({} for _ in range(network.columns))
    for name in shapes_of(network):
        if name in shared:
            continue
        for column, part in enumerate(state[name].chunk(network.columns)):
            columns[column][_of_column(name, column)] = part
    return Apart(columns, {name: state[name] for name in shared})


def join_columns(network: Network, columns: Sequence[State], shared: State) -> State:
    """The whole state that `split_columns` took apart. Raises WeightsError naming tensors that do not fit."""
    if len(columns) != network.columns:
        raise WeightsError(f"{len(columns)} columns are given, expected the network's {network.columns}: give each one")
    expected = {
        _of_column(name, column): (name, column)
        for name in shapes_of(network)
        if name not in _shared(network)
        for column in range(network.columns)
    }
    given = {key: value for column in columns for key, value in column.items()}
    missing, surplus = [key for key in expected if key not in given], [key for key in given if key not in expected]
    if missing or surplus:
        raise WeightsError(
            f"the columns lack {', '.join(missing) or 'nothing'} and also hold {', '.join(surplus) or 'nothing'}, "
            "expected the tensors of the network: give those that split_columns made"
        )
    parts: dict[str, list[Any]] = {}
    for key, (name, _) in expected.items():
        if parts.get(name) and given[key].shape != parts[name][0].shape:
            raise WeightsError(f"{key} is of another shape than {name} in column a, expected equal ones: check it")
        parts.setdefault(name, []).append(given[key])
    whole = {name: torch.cat(values) for name, values in parts.items()}
    return fitted({**whole, **shared}, shapes_of(network), "the joined state", "given")


def one_column(spec: Spec) -> Spec:
    """The same net said with one column and grouped convolutions; the same state fits it, bit for bit.

    Raises WeightsError where one column cannot say it: response norm (it would cross), local or fully connected layers
    that read their own column only.
    """
    if spec.columns == 1:
        return spec
    layers: list[Any] = []
    for number, layer in enumerate(spec.layers, 1):
        own = isinstance(layer, Local | FullyConnected) and layer.reads == "own"
        if own or isinstance(layer, ResponseNorm):
            raise WeightsError(
                f"layer {number} ({getattr(layer, 'name', layer.kind)}) stays in its own column, which a net of one "
                "column cannot say: keep columns: 2 (its weights are in the layout of grouped convolutions already)"
            )
        changed: dict[str, Any] = {}
        if isinstance(layer, Conv):
            changed["groups"] = layer.groups * (spec.columns if layer.reads == "own" else 1)
            changed["reads"] = "all"
        if isinstance(layer, Conv | Local):
            changed["filters"] = layer.filters * spec.columns
        if isinstance(layer, FullyConnected) and layer.units != "classes":
            changed["units"] = layer.units * spec.columns
        layers.append(layer.model_copy(update=changed))
    return spec.model_copy(update={"columns": 1, "layers": tuple(layers)})


def _shared(network: Network) -> set[str]:
    last = network.steps[-1]
    return {one.tensor.name for one in (last.weight, last.bias) if one is not None}


def _of_column(name: str, column: int) -> str:
    layer, kind = name.split(".")
    return f"{layer}{COLUMNS[column]}.{kind}"
