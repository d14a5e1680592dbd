"""What a network is: a short declaration, read from YAML, and what follows from it for a size.

A network is a list of layers in the order in which they are computed. Sizes are per column. A convolution reads its own
column or all of them; a fully connected layer reads everything. Initial deviations are meant for the declared sizes
(`image_size`, width 1); at another size each layer's deviation is multiplied by sqrt(declared fan-in / its fan-in), so
that a narrow or small net starts with signals of the same size (unscaled, net 145 at width 0.25 on 64 pixels does not
learn at all).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dist_alexnet.errors import ConfigError
from dist_alexnet.parallel.layout import LogicalTensor

PRESETS = Path(__file__).parent / "presets"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Multipliers(_Part):
    """Of the optimizer's learning rate and weight decay."""

    lr: float = Field(1.0, ge=0)
    decay: float = Field(1.0, ge=0)


class Weighted(_Part):
    """What convolutions and fully connected layers share."""

    name: str = Field(pattern=r"^[A-Za-z]\w*$")
    init_sd: float = Field(gt=0, description="deviation of the normal initial weights, at the declared size")
    init_bias: float = Field(0.0, description="initial value of every bias")
    weight: Multipliers = Multipliers()
    bias: Multipliers = Multipliers(lr=2.0, decay=0.0)


class Conv(Weighted):
    kind: Literal["conv"]
    filters: int = Field(gt=0, description="per column")
    kernel: int = Field(gt=0)
    stride: int = Field(1, gt=0)
    pad: int = Field(0, ge=0, description="zeros on every side; the output is rounded up, so the end may overhang")
    reads: Literal["own", "all"] = Field("own", description="its own column, or all columns")


class FullyConnected(Weighted):
    kind: Literal["fc"]
    units: int | Literal["classes"] = Field(description="per column; 'classes': one a class, in all")


class Relu(_Part):
    kind: Literal["relu"]


class ResponseNorm(_Part):
    """x / (k + alpha * s)^beta with s over `size` neighbouring maps of the same column (PAPER 3.3)."""

    kind: Literal["lrn"]
    size: int = Field(5, gt=0)
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    convention: Literal["mean", "sum"] = Field(description="s is the mean of squares (2012's code, torch) or their sum")


class SpatialNorm(_Part):
    """x / (k + alpha * mean of squares in a size x size window of the same map)^beta."""

    kind: Literal["spatial_norm"]
    size: int = Field(5, gt=0)
    alpha: float = 1e-3
    beta: float = 0.75
    k: float = 1.0


class MaxPool(_Part):
    kind: Literal["max_pool"]
    size: int = Field(3, gt=0)
    stride: int = Field(2, gt=0)


class Dropout(_Part):
    """Training: a unit is zero with probability `rate`; test: every unit times 1 - rate (2012's form)."""

    kind: Literal["dropout"]
    name: str = Field(pattern=r"^[A-Za-z]\w*$")
    rate: float = Field(0.5, ge=0, lt=1)


Layer = Annotated[
    Conv | FullyConnected | Relu | ResponseNorm | SpatialNorm | MaxPool | Dropout, Field(discriminator="kind")
]


class Spec(_Part):
    """A network as declared."""

    columns: Literal[1, 2]
    image_size: int = Field(gt=0, description="side in pixels for which the initial deviations are meant")
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Step:
    """One layer at its real size. Shapes are of the whole network (all columns): (C, H, W) or (units,)."""

    layer: Layer
    reads: tuple[int, ...]
    gives: tuple[int, ...]
    weight: LogicalTensor | None = None
    bias: LogicalTensor | None = None
    init_sd: float = 0.0


@dataclass(frozen=True)
class Network:
    """A spec at a width, image size and number of classes."""

    columns: int
    image_size: int
    steps: tuple[Step, ...]

    @property
    def tensors(self) -> tuple[LogicalTensor, ...]:
        """Every parameter, in order."""
        return tuple(tensor for step in self.steps for tensor in (step.weight, step.bias) if tensor is not None)

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(tensor.elements for tensor in self.tensors)

    def as_dict(self) -> dict[str, Any]:
        """Plain values that tell two networks apart; what a layer leaves at its default is not in them."""
        return {
            "columns": self.columns,
            "image_size": self.image_size,
            "layers": [
                {**step.layer.model_dump(mode="json", exclude_defaults=True), "gives": list(step.gives)}
                for step in self.steps
            ],
        }


def load_spec(name: str) -> Spec:
    """A preset by name, or a YAML file by path. Raises ConfigError in one sentence."""
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        known = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        raise ConfigError(f"network.name is {name!r}, expected a preset ({known}) or the path of a YAML file")
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"network {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"network {path} is not YAML: {' '.join(str(error).split())}") from error
    return spec_from(values, str(path))


def spec_from(values: Any, origin: str) -> Spec:
    """Check plain values, as read from YAML or from a checkpoint. `origin` is named in the error (ConfigError)."""
    try:
        spec = Spec.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"network {origin}: {_sentence(error, values)}") from error
    _check(spec, origin)
    return spec


def network_for(
    spec: Spec, *, num_classes: int, width: float = 1.0, image_size: int | None = None, dropout: float | None = None
) -> Network:
    """Sizes, tensors and initial deviations of `spec`. Raises ConfigError naming the layer that does not come out."""
    declared = _sized(spec, num_classes, 1.0, spec.image_size)
    sized = _sized(spec, num_classes, width, image_size or spec.image_size)
    steps = []
    for step, full in zip(sized, declared, strict=True):
        layer = step.layer
        if isinstance(layer, Dropout) and dropout is not None:
            layer = layer.model_copy(update={"rate": dropout})
        sd = 0.0
        if isinstance(layer, Weighted) and step.weight and full.weight:
            sd = layer.init_sd * math.sqrt(full.weight.row_elements / step.weight.row_elements)
        steps.append(Step(layer, step.reads, step.gives, step.weight, step.bias, sd))
    return Network(spec.columns, image_size or spec.image_size, tuple(steps))


def _sized(spec: Spec, num_classes: int, width: float, image_size: int) -> list[Step]:
    steps: list[Step] = []
    shape: tuple[int, ...] = (3, image_size, image_size)
    for number, layer in enumerate(spec.layers, 1):
        steps.append(_step(number, layer, shape, spec.columns, num_classes, width))
        shape = steps[-1].gives
    return steps


def _step(number: int, layer: Layer, shape: tuple[int, ...], columns: int, num_classes: int, width: float) -> Step:
    if isinstance(layer, Conv):
        filters = columns * _scaled(layer.name, "filters", layer.filters, width)
        side = _outputs(shape[1] + 2 * layer.pad, layer.kernel, layer.stride, layer.name)
        channels = shape[0] if layer.reads == "all" else shape[0] // columns
        return Step(
            layer,
            shape,
            (filters, side, side),
            LogicalTensor(f"{layer.name}.weight", (filters, channels, layer.kernel, layer.kernel), "column"),
            LogicalTensor(f"{layer.name}.bias", (filters,), "column"),
        )
    if isinstance(layer, FullyConnected):
        units = num_classes if layer.units == "classes" else columns * _scaled(layer.name, "units", layer.units, width)
        return Step(
            layer,
            shape,
            (units,),
            LogicalTensor(f"{layer.name}.weight", (units, math.prod(shape)), "group"),
            LogicalTensor(f"{layer.name}.bias", (units,), "group"),
        )
    if isinstance(layer, MaxPool):
        side = _outputs(shape[1], layer.size, layer.stride, f"layer {number} (max_pool)")
        return Step(layer, shape, (shape[0], side, side))
    return Step(layer, shape, shape)


def _scaled(name: str, what: str, size: int, width: float) -> int:
    scaled = size * width
    if scaled != round(scaled) or scaled < 1:
        raise ConfigError(f"network.width is {width}, which gives {name} {scaled:g} {what}: expected a whole number")
    return round(scaled)


def _outputs(side: int, kernel: int, stride: int, name: str) -> int:
    """1 + ceil((side - kernel) / stride): the count of 2012, in which the last window may overhang the end."""
    if side < kernel:
        raise ConfigError(f"{name} sees {side} pixels, expected at least {kernel}: raise data.image_size")
    return 1 + -(-(side - kernel) // stride)


def _check(spec: Spec, origin: str) -> None:
    """What the types cannot say. Raises ConfigError naming layer, parameter and allowed values."""
    names = [layer.name for layer in spec.layers if isinstance(layer, Weighted | Dropout)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"network {origin}: two layers are named {name!r}, expected names of their own")
    weighted = [layer for layer in spec.layers if isinstance(layer, Weighted)]
    last = spec.layers[-1] if spec.layers else None
    if not isinstance(last, FullyConnected) or last.units != "classes":
        raise ConfigError(f"network {origin}: the last layer must be kind fc with units: classes")
    if not isinstance(weighted[0], Conv):
        raise ConfigError(f"network {origin}: the first layer with weights is {weighted[0].name}, expected kind conv")
    connected = begun = False
    for number, layer in enumerate(spec.layers, 1):
        if not begun and isinstance(layer, ResponseNorm | Dropout):
            raise ConfigError(
                f"network {origin}: layer {number} ({layer.kind}) works on a column's own maps, expected behind a conv"
            )
        begun = begun or isinstance(layer, Conv)
        if isinstance(layer, FullyConnected):
            connected = True
        elif connected and not isinstance(layer, Relu | Dropout):
            raise ConfigError(
                f"network {origin}: a {layer.kind} layer stands after a fc layer, expected relu or dropout"
            )
        if isinstance(layer, Conv) and layer is weighted[0] and layer.reads != "all":
            raise ConfigError(f"network {origin}: {layer.name} reads {layer.reads!r}, expected 'all' for the image")
        if isinstance(layer, MaxPool) and layer.stride > layer.size:
            raise ConfigError(
                f"network {origin}: layer {number} (max_pool) has stride {layer.stride}, expected at most its size "
                f"({layer.size})"
            )
        if isinstance(layer, SpatialNorm) and layer.size % 2 == 0:
            raise ConfigError(
                f"network {origin}: layer {number} (spatial_norm) has size {layer.size}, expected an odd number"
            )


def _sentence(error: ValidationError, values: Any) -> str:
    """The first thing wrong, a key that is not known before one that is missing: it may be the same, misspelt."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    loc, known, where = list(first["loc"]), sorted(Spec.model_fields), ""
    if loc[:1] == ["layers"] and len(loc) > 1 and isinstance(loc[1], int):
        layer = values["layers"][loc[1]]
        where = f"layer {loc[1] + 1} ({layer.get('name', layer.get('kind')) if isinstance(layer, dict) else layer})"
        known, loc = _keys_of_kind(loc[2] if len(loc) > 2 else None), loc[3:]
    if len(loc) > 1:
        known = sorted(Multipliers.model_fields)
    what = " ".join(part for part in (where, ".".join(str(step) for step in loc)) if part)
    message = f"{first['msg'][0].lower()}{first['msg'][1:]}"
    if first["type"] == "extra_forbidden":
        return f"{what} is an unknown key, expected one of {', '.join(known)}"
    if isinstance(first["input"], dict | list | tuple):  # the whole layer: what is missing in it, or its kind
        return f"{what}: {message}"
    return f"{what or 'it'} is {first['input']!r}: {message}"


def _keys_of_kind(kind: Any) -> list[str]:
    kinds = {get_args(one.model_fields["kind"].annotation)[0]: one for one in get_args(get_args(Layer)[0])}
    return sorted(kinds[kind].model_fields) if kind in kinds else []
