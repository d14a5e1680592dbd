"""What follows from a spec for a size: shapes, tensors, initial values.

Initial deviations are meant for the declared sizes (`image_size`, width 1); at another size each layer's deviation is
multiplied by sqrt(declared fan-in / its fan-in), so that a narrow or small net starts with signals of the same size
(unscaled, net 145 at width 0.25 on 64 pixels does not learn at all).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from dist_alexnet.errors import ConfigError
from dist_alexnet.network.spec import (
    AvgPool,
    BatchNorm,
    Conv,
    Dropout,
    FullyConnected,
    Layer,
    Local,
    MaxPool,
    Multipliers,
    Spec,
    Weighted,
)
from dist_alexnet.parallel.layout import LogicalTensor


@dataclass(frozen=True)
class Initial:
    """Initial values of one tensor: all `size`; normal with deviation `size`; or uniform within +-`size`."""

    kind: Literal["constant", "normal", "uniform"]
    size: float


@dataclass(frozen=True)
class Learned:
    """A parameter of the whole network."""

    tensor: LogicalTensor
    initial: Initial
    multipliers: Multipliers


@dataclass(frozen=True)
class Step:
    """One layer at its real size. Shapes are of the whole network (all columns): (C, H, W) or (units,)."""

    layer: Layer
    reads: tuple[int, ...]
    gives: tuple[int, ...]
    weight: Learned | None = None
    bias: Learned | None = None
    statistics: tuple[LogicalTensor, ...] = ()  # of a batch norm: running mean and variance, not learned
    fan_in: int = 0


@dataclass(frozen=True)
class Network:
    """A spec at a width, image size and number of classes."""

    columns: int
    image_size: int
    pixel_std: tuple[float, float, float]
    steps: tuple[Step, ...]

    @property
    def learned(self) -> tuple[Learned, ...]:
        """Every parameter, in order."""
        return tuple(learned for step in self.steps for learned in (step.weight, step.bias) if learned is not None)

    @property
    def tensors(self) -> tuple[LogicalTensor, ...]:
        """The logical tensor of every parameter, in order."""
        return tuple(one.tensor for one in self.learned)

    @property
    def statistics(self) -> tuple[LogicalTensor, ...]:
        """Running statistics of batch norms: kept with the weights, but not learned."""
        return tuple(tensor for step in self.steps for tensor in step.statistics)

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(tensor.elements for tensor in self.tensors)

    def as_dict(self) -> dict[str, Any]:
        """Plain values that tell two networks apart, an entry a layer; what is left at its default is not in them."""
        layers = {
            f"{number}.{getattr(step.layer, 'name', step.layer.kind)}": {**_told(step.layer), "gives": list(step.gives)}
            for number, step in enumerate(self.steps, 1)
        }
        scale = {"pixel_std": list(self.pixel_std)} if self.pixel_std != (1.0, 1.0, 1.0) else {}
        return {"columns": self.columns, "image_size": self.image_size, **scale, **layers}


def _told(layer: Layer) -> dict[str, Any]:
    """A layer's settings that are not at their defaults, each of them whole."""
    whole: dict[str, Any] = layer.model_dump(mode="json")
    return {key: whole[key] for key in layer.model_dump(exclude_defaults=True)}


def network_for(
    spec: Spec, *, num_classes: int, width: float = 1.0, image_size: int | None = None, dropout: float | None = None
) -> Network:
    """Sizes, tensors and initial values of `spec`. Raises ConfigError naming the layer that does not come out."""
    declared = _sized(spec, num_classes, 1.0, spec.image_size)
    sized = _sized(spec, num_classes, width, image_size or spec.image_size)
    steps = []
    for step, full in zip(sized, declared, strict=True):
        layer = step.layer
        if isinstance(layer, Dropout) and dropout is not None:
            steps.append(Step(layer.model_copy(update={"rate": dropout}), step.reads, step.gives))
        elif isinstance(layer, Weighted):
            steps.append(_with_tensors(step, layer, spec.columns, full.fan_in))
        elif isinstance(layer, BatchNorm):
            steps.append(_normalised(step, layer))
        else:
            steps.append(step)
    return Network(spec.columns, image_size or spec.image_size, spec.pixel_std_3, tuple(steps))


def _with_tensors(step: Step, layer: Weighted, columns: int, declared_fan_in: int) -> Step:
    """The layer's tensors. Weights are stored filters (or units) first, because that is what is cut."""
    weight_shape: tuple[int, ...]
    if isinstance(layer, FullyConnected):
        bias_shape, weight_shape = step.gives, (*step.gives, step.fan_in)
    else:
        assert isinstance(layer, Conv | Local)
        kernel = (step.fan_in // layer.kernel**2, layer.kernel, layer.kernel)
        bias_shape = step.gives if isinstance(layer, Local) else step.gives[:1]
        weight_shape = (*bias_shape, *kernel)
    cut: Literal["column", "group"] = "group" if isinstance(layer, FullyConnected) else "column"
    weight = LogicalTensor(f"{layer.name}.weight", weight_shape, cut)
    bias = LogicalTensor(f"{layer.name}.bias", bias_shape, cut)
    bound = math.sqrt(1 / step.fan_in)
    if layer.init == "normal":
        assert layer.init_sd is not None
        initial = Initial("normal", layer.init_sd * math.sqrt(declared_fan_in / step.fan_in))
    elif layer.init == "he":
        initial = Initial("normal", math.sqrt(2) * bound)
    else:
        initial = Initial("uniform", math.sqrt(3) * bound if layer.init == "xavier" else bound)
    bias_initial = Initial("uniform", bound) if layer.init == "torch" else Initial("constant", layer.init_bias)
    return Step(
        layer,
        step.reads,
        step.gives,
        Learned(weight, initial, layer.weight),
        Learned(bias, bias_initial, layer.bias) if layer.has_bias else None,
        (),
        step.fan_in,
    )


def _normalised(step: Step, layer: BatchNorm) -> Step:
    maps = step.gives[:1]
    return Step(
        layer,
        step.reads,
        step.gives,
        Learned(LogicalTensor(f"{layer.name}.weight", maps, "column"), Initial("constant", 1.0), layer.weight),
        Learned(LogicalTensor(f"{layer.name}.bias", maps, "column"), Initial("constant", 0.0), layer.bias),
        tuple(LogicalTensor(f"{layer.name}.{kind}", maps, "column") for kind in ("mean", "variance")),
    )


def _sized(spec: Spec, num_classes: int, width: float, image_size: int) -> list[Step]:
    """Shapes and fan-in of every layer."""
    steps: list[Step] = []
    shape: tuple[int, ...] = (3, image_size, image_size)
    for number, layer in enumerate(spec.layers, 1):
        steps.append(_step(number, layer, shape, spec.columns, num_classes, width))
        shape = steps[-1].gives
    return steps


def _step(number: int, layer: Layer, shape: tuple[int, ...], columns: int, num_classes: int, width: float) -> Step:
    if isinstance(layer, Conv | Local):
        filters = columns * _scaled(layer.name, "filters", layer.filters, width)
        rounding = layer.rounding if isinstance(layer, Conv) else "up"
        side = _outputs(shape[1] + 2 * layer.pad, layer.kernel, layer.stride, layer.name, rounding)
        groups = (1 if layer.reads == "all" else columns) * (layer.groups if isinstance(layer, Conv) else 1)
        if shape[0] % groups or filters % groups:
            raise ConfigError(
                f"{layer.name} reads {shape[0]} maps and gives {filters}, expected multiples of {groups} parts that do "
                "not see each other: change network.width, its filters, reads or groups"
            )
        return Step(layer, shape, (filters, side, side), fan_in=shape[0] // groups * layer.kernel**2)
    if isinstance(layer, FullyConnected):
        units = num_classes if layer.units == "classes" else columns * _scaled(layer.name, "units", layer.units, width)
        return Step(layer, shape, (units,), fan_in=math.prod(shape) // (columns if layer.reads == "own" else 1))
    if isinstance(layer, MaxPool | AvgPool):
        side = _outputs(shape[1], layer.size, layer.stride, f"layer {number} ({layer.kind})")
        return Step(layer, shape, (shape[0], side, side))
    return Step(layer, shape, shape)


def _scaled(name: str, what: str, size: int, width: float) -> int:
    scaled = size * width
    if scaled != round(scaled) or scaled < 1:
        raise ConfigError(f"network.width is {width}, which gives {name} {scaled:g} {what}: expected a whole number")
    return round(scaled)


def _outputs(side: int, kernel: int, stride: int, name: str, rounding: str = "up") -> int:
    """1 + (side - kernel) / stride, rounded up as in 2012 (the last window may overhang the end), or down."""
    if side < kernel:
        raise ConfigError(f"{name} sees {side} pixels, expected at least {kernel}: raise data.image_size")
    return 1 + (-(-(side - kernel) // stride) if rounding == "up" else (side - kernel) // stride)
