"""ONNX, outwards: the network at test, a node for each thing that it does, written by hand from the spec.

Input `pixels`, fp32 (N, 3, S, S): R, G, B of 0-255 minus the mean (as the trainer sees them). Output `logits`, fp32
(N, classes). The division by `pixel_std` is in the graph; the mean is not: it can be a picture of its own, and
is told in the model's metadata.
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from dist_alexnet.errors import WeightsError
from dist_alexnet.network.sizes import Network, Step
from dist_alexnet.network.spec import (
    AvgPool,
    BatchNorm,
    Conv,
    Dropout,
    FullyConnected,
    Local,
    MaxPool,
    ResponseNorm,
    SpatialNorm,
)
from dist_alexnet.network.weights.files import appearing, missing_extra
from dist_alexnet.network.weights.state import State, Weights

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 17  # what is used here reads the same from 15 on; runtimes of 2022 know 17
IR_VERSION = 8


def write_onnx(weights: Weights, to: Path) -> None:
    """Write the network as an ONNX model that its checker accepts. Raises WeightsError."""
    model = onnx_model(weights)
    with appearing(to) as partial:
        partial.write_bytes(model.SerializeToString())


def onnx_model(weights: Weights) -> "ModelProto":
    """The network at test as a checked ONNX model. Raises WeightsError where ONNX has no such layer."""
    try:
        from onnx import TensorProto, checker, helper
    except ImportError as error:
        raise missing_extra("onnx") from error
    network = weights.network
    graph = _Graph()
    last = _network(graph, network, weights.tensors)
    side = network.image_size
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, side, side])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", weights.num_classes])
    graph.nodes.append(helper.make_node("Identity", [last], ["logits"], name="logits"))
    made = helper.make_graph(graph.nodes, "alexnet", [pixels], [logits], graph.constants)
    model = helper.make_model(
        made,
        producer_name="dist-alexnet",
        producer_version=version("dist-alexnet"),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, _metadata(weights))
    checker.check_model(model, full_check=True)
    return model


def _metadata(weights: Weights) -> dict[str, str]:
    return {
        "network": weights.name,
        "input": "pixels: R, G, B of 0-255 minus the mean, not yet divided by pixel_std",
        "data": json.dumps(weights.pixels),
        "pixel_std": json.dumps(weights.spec.pixel_std_3),
    }


class _Graph:
    """Nodes and constants in the making. Values have names; shapes in comments are those of one call."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.layer = ""

    def constant(self, name: str, values: "Tensor | np.ndarray | Sequence[int] | float") -> str:
        """A constant under its name, once: a tensor, whole numbers (a shape), or one fp32 number."""
        from onnx import numpy_helper

        if isinstance(values, Tensor):
            array = values.detach().cpu().numpy()
        elif isinstance(values, float):
            array = np.array(values, np.float32)
        else:
            array = values if isinstance(values, np.ndarray) else np.array(values, np.int64)
        if all(name != known.name for known in self.constants):
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of what it gives."""
        from onnx import helper

        name = f"{self.layer}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def number(self, what: str, value: float) -> str:
        """A setting of the layer as a constant."""
        return self.constant(f"{self.layer}/{what}", float(value))

    def reshaped(self, x: str, *shape: int) -> str:
        """x in another shape; -1 once for what follows, 0 for the same as before."""
        return self.node("Reshape", x, self.constant(f"shape/{'x'.join(map(str, shape))}", shape))


def _network(graph: _Graph, network: Network, state: State) -> str:
    x, flat = "pixels", False
    if network.pixel_std != (1.0, 1.0, 1.0):
        graph.layer = "scale"
        std = np.array(network.pixel_std, np.float32).reshape(1, 3, 1, 1)
        x = graph.node("Div", x, graph.constant("scale/pixel_std", std))
    for number, step in enumerate(network.steps, 1):
        layer = step.layer
        graph.layer = getattr(layer, "name", f"{layer.kind}{number}")
        if isinstance(layer, FullyConnected):
            x = _connected(graph, step, layer, network.columns, state, x if flat else graph.node("Flatten", x))
            flat = True
        elif isinstance(layer, Conv):
            x = _convolution(graph, step, layer, network.columns, state, x)
        elif isinstance(layer, Local):
            x = _local(graph, step, layer, network.columns, state, x)
        elif isinstance(layer, ResponseNorm):
            x = _response_norm(graph, step, layer, network.columns, x)
        elif isinstance(layer, BatchNorm):
            kinds = ("weight", "bias", "mean", "variance")
            values = [graph.constant(f"{layer.name}.{kind}", state[f"{layer.name}.{kind}"]) for kind in kinds]
            x = graph.node("BatchNormalization", x, *values, epsilon=layer.eps)
        elif isinstance(layer, Dropout):
            if layer.scale == "test":
                x = graph.node("Mul", x, graph.number("kept", 1 - layer.rate))
        else:
            x = _pointwise(graph, step, x)
    return x


def _pointwise(graph: _Graph, step: Step, x: str) -> str:
    layer, side = step.layer, step.reads[-1]
    if isinstance(layer, MaxPool | AvgPool):
        # The last window overhangs the map: as padding at the end, because runtimes do not agree on ceil_mode.
        over = (step.gives[-1] - 1) * layer.stride + layer.size - side
        window: dict[str, Any] = {"kernel_shape": [layer.size] * 2, "strides": [layer.stride] * 2}
        window["pads"] = [0, 0, over, over]
        if isinstance(layer, MaxPool):
            return graph.node("MaxPool", x, **window)
        return graph.node("AveragePool", x, count_include_pad=0, **window)  # the mean of what lies in the map
    if isinstance(layer, SpatialNorm):
        pads = [layer.size // 2] * 4
        squares = graph.node("Mul", x, x)
        mean = graph.node("AveragePool", squares, kernel_shape=[layer.size] * 2, pads=pads, count_include_pad=1)
        inside = graph.node(
            "Add", graph.node("Mul", mean, graph.number("alpha", layer.alpha)), graph.number("k", layer.k)
        )
        return graph.node("Div", x, graph.node("Pow", inside, graph.number("beta", layer.beta)))
    return graph.node("Relu", x)


def _response_norm(graph: _Graph, step: Step, layer: ResponseNorm, columns: int, x: str) -> str:
    if layer.size % 2 == 0:
        raise WeightsError(
            f"{graph.layer} has a window of {layer.size} maps, expected an odd number: ONNX puts the middle of an even "
            "one elsewhere"
        )
    channels, height, width = step.reads
    if columns > 1:
        x = graph.reshaped(x, -1, channels // columns, height, width)
    alpha = layer.alpha if layer.convention == "mean" else layer.alpha * layer.size  # ONNX divides it by the size
    x = graph.node("LRN", x, size=layer.size, alpha=alpha, beta=layer.beta, bias=layer.k)
    return graph.reshaped(x, -1, channels, height, width) if columns > 1 else x


def _padding(step: Step, layer: Conv | Local) -> list[int]:
    """Top, left, bottom, right; where counts are rounded up the last filters overhang the end, never less than 0."""
    covered = (step.gives[-1] - 1) * layer.stride + layer.kernel
    return [layer.pad, layer.pad, *[max(0, covered - layer.pad - step.reads[-1])] * 2]


def _groups(layer: Conv | Local, columns: int) -> int:
    return (columns if layer.reads == "own" else 1) * (layer.groups if isinstance(layer, Conv) else 1)


def _convolution(graph: _Graph, step: Step, layer: Conv, columns: int, state: State, x: str) -> str:
    kinds = ("weight", "bias") if layer.has_bias else ("weight",)
    values = [graph.constant(f"{layer.name}.{kind}", state[f"{layer.name}.{kind}"]) for kind in kinds]
    return graph.node(
        "Conv",
        x,
        *values,
        kernel_shape=[layer.kernel] * 2,
        strides=[layer.stride] * 2,
        pads=_padding(step, layer),
        group=_groups(layer, columns),
    )


def _local(graph: _Graph, step: Step, layer: Local, columns: int, state: State, x: str) -> str:
    """ONNX has no local layer: patches by a convolution with one-hot filters, then one product for each place."""
    (channels, _, _), (filters, height, width) = step.reads, step.gives
    groups, area, places = _groups(layer, columns), layer.kernel**2, height * width
    patch = channels // groups * area
    one_hot = np.tile(np.eye(area, dtype=np.float32).reshape(area, 1, layer.kernel, layer.kernel), (channels, 1, 1, 1))
    x = graph.node(
        "Conv",
        x,
        graph.constant(f"{layer.name}/patches", one_hot),
        kernel_shape=[layer.kernel] * 2,
        strides=[layer.stride] * 2,
        pads=_padding(step, layer),
        group=channels,
    )
    x = graph.node("Transpose", graph.reshaped(x, -1, groups, patch, places), perm=[1, 3, 0, 2])  # g, place, N, patch
    weight = state[f"{layer.name}.weight"].reshape(groups, filters // groups, places, patch).permute(0, 2, 3, 1)
    x = graph.node("MatMul", x, graph.constant(f"{layer.name}.weight", weight.contiguous()))  # g, place, N, filter
    x = graph.reshaped(graph.node("Transpose", x, perm=[2, 0, 3, 1]), -1, filters, height, width)
    return _plus_bias(graph, layer, state, x)


def _connected(graph: _Graph, step: Step, layer: FullyConnected, columns: int, state: State, x: str) -> str:
    weight, units = state[f"{layer.name}.weight"], step.gives[0]
    if layer.reads == "all" or columns == 1:
        kinds = ("weight", "bias") if layer.has_bias else ("weight",)
        values = [graph.constant(f"{layer.name}.{kind}", state[f"{layer.name}.{kind}"]) for kind in kinds]
        return graph.node("Gemm", x, *values, transB=1)
    each = weight.shape[1]
    x = graph.node("Transpose", graph.reshaped(x, -1, columns, each), perm=[1, 0, 2])  # column, N, feature
    by_column = weight.reshape(columns, units // columns, each).permute(0, 2, 1).contiguous()
    x = graph.node("MatMul", x, graph.constant(f"{layer.name}.weight", by_column))  # column, N, unit
    return _plus_bias(graph, layer, state, graph.reshaped(graph.node("Transpose", x, perm=[1, 0, 2]), -1, units))


def _plus_bias(graph: _Graph, layer: Local | FullyConnected, state: State, x: str) -> str:
    if not layer.has_bias:
        return x
    return graph.node("Add", x, graph.constant(f"{layer.name}.bias", state[f"{layer.name}.bias"]))
