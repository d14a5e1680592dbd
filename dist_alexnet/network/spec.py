"""What a network is: a short declaration, read from YAML.

A network is a list of layers in the order in which they are computed. Sizes are per column. A layer with weights reads
its own column or all of them. What follows from a spec for a size (shapes, tensors) is in network/sizes.py.
"""

from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dist_alexnet.errors import ConfigError

PRESETS = Path(__file__).parent / "presets"
Name = Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")]
Reads = Literal["own", "all"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Multipliers(_Part):
    """Of the optimizer's learning rate and weight decay."""

    lr: float = Field(1.0, ge=0)
    decay: float = Field(1.0, ge=0)


class Weighted(_Part):
    """What convolutions, local and fully connected layers share.

    init, of the weights: normal (deviation init_sd at the declared size); he (normal, sqrt(2 / fan-in)); xavier
    (Caffe's: uniform within sqrt(3 / fan-in)); torch (its default: weights and biases uniform within sqrt(1 / fan-in)).
    """

    name: Name
    init: Literal["normal", "he", "xavier", "torch"] = "normal"
    init_sd: float | None = Field(None, gt=0, description="deviation of normal initial weights, at the declared size")
    init_bias: float = Field(0.0, description="initial value of every bias")
    has_bias: bool = True
    weight: Multipliers = Multipliers()
    bias: Multipliers = Multipliers(lr=2.0, decay=0.0)

    @model_validator(mode="after")
    def _goes_together(self) -> "Weighted":
        if (self.init == "normal") != (self.init_sd is not None):
            raise ValueError(
                f"init is {self.init} and init_sd {self.init_sd}, expected init_sd with normal, and only there"
            )
        return self


class Conv(Weighted):
    kind: Literal["conv"]
    filters: int = Field(gt=0, description="per column")
    kernel: int = Field(gt=0)
    stride: int = Field(1, gt=0)
    pad: int = Field(0, ge=0, description="zeros on every side")
    reads: Reads = Field("own", description="its own column, or all columns")
    groups: int = Field(1, gt=0, description="parts of a column that do not see each other (Caffe's `group`)")
    rounding: Literal["up", "down"] = Field(
        "up", description="of the count of outputs: up as in 2012, the last filters overhang the end; down as torch"
    )


class Local(Weighted):
    """A convolution whose filters are not shared: each place of the output has its own weights and its own bias."""

    kind: Literal["local"]
    filters: int = Field(gt=0, description="per column")
    kernel: int = Field(gt=0)
    stride: int = Field(1, gt=0)
    pad: int = Field(0, ge=0, description="zeros on every side")
    reads: Reads = Field("own", description="its own column, or all columns")


class FullyConnected(Weighted):
    kind: Literal["fc"]
    units: int | Literal["classes"] = Field(description="per column; 'classes': one a class, in all")
    reads: Reads = Field("all", description="its own column, or all columns")


class BatchNorm(_Part):
    """Per map, over fixed parts of the global batch (network.batch_norm_groups); running statistics at test."""

    kind: Literal["batch_norm"]
    name: Name
    eps: float = Field(1e-5, gt=0, description="added to the variance")
    momentum: float = Field(0.1, gt=0, le=1, description="part of a step's statistics in the running ones")
    weight: Multipliers = Multipliers(decay=0.0)
    bias: Multipliers = Multipliers(decay=0.0)


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


class AvgPool(_Part):
    """Mean of the window's pixels that lie in the map; the last window may overhang it."""

    kind: Literal["avg_pool"]
    size: int = Field(3, gt=0)
    stride: int = Field(2, gt=0)


class Dropout(_Part):
    """Training: a unit is zero with probability `rate`.

    scale test (2012): every unit times 1 - rate at test; scale training (torch, Caffe): kept units times 1 / (1 - rate)
    in training.
    """

    kind: Literal["dropout"]
    name: Name
    rate: float = Field(0.5, ge=0, lt=1)
    scale: Literal["test", "training"] = "test"


Layer = Annotated[
    Conv | Local | FullyConnected | BatchNorm | Relu | ResponseNorm | SpatialNorm | MaxPool | AvgPool | Dropout,
    Field(discriminator="kind"),
]


class Spec(_Part):
    """A network as declared."""

    columns: Literal[1, 2]
    image_size: int = Field(gt=0, description="side in pixels for which the initial deviations are meant")
    pixel_std: float | tuple[float, float, float] = Field(
        1.0, description="what pixels (0-255, minus the mean) are divided by, one number or R, G, B"
    )
    layers: tuple[Layer, ...]

    @property
    def pixel_std_3(self) -> tuple[float, float, float]:
        std = self.pixel_std
        return std if isinstance(std, tuple) else (std, std, std)


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


def differences(one: Spec, other: Spec) -> list[str]:
    """Where two specs differ, a phrase each: the layer and its setting, first as in `one`, then as in `other`."""
    found = []
    for key in ("columns", "image_size", "pixel_std"):
        if getattr(one, key) != getattr(other, key):
            found.append(f"{key} {getattr(one, key)} against {getattr(other, key)}")
    for number, (a, b) in enumerate(zip_longest(one.layers, other.layers), 1):
        if a == b:
            continue
        if a is None or b is None or a.kind != b.kind:
            found.append(f"layer {number}: {_label(a)} against {_label(b)}")
            continue
        for key, value in a.model_dump().items():
            if value != getattr(b, key) and value != b.model_dump()[key]:
                found.append(f"layer {number} ({_label(a)}): {key} {value} against {b.model_dump()[key]}")
    return found


def _label(layer: Any) -> str:
    return "none" if layer is None else str(getattr(layer, "name", layer.kind))


def _check(spec: Spec, origin: str) -> None:
    """What the types cannot say. Raises ConfigError naming layer, parameter and allowed values."""
    if min(spec.pixel_std_3) <= 0:
        raise ConfigError(f"network {origin}: pixel_std is {spec.pixel_std}, expected numbers above 0")
    names = [layer.name for layer in spec.layers if isinstance(layer, Weighted | BatchNorm | Dropout)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"network {origin}: two layers are named {name!r}, expected names of their own")
    weighted = [layer for layer in spec.layers if isinstance(layer, Weighted)]
    last = spec.layers[-1] if spec.layers else None
    if not isinstance(last, FullyConnected) or last.units != "classes":
        raise ConfigError(f"network {origin}: the last layer must be kind fc with units: classes")
    if last.reads != "all":
        raise ConfigError(f"network {origin}: {last.name} reads 'own', expected 'all': classes belong to no column")
    if not isinstance(weighted[0], Conv):
        raise ConfigError(f"network {origin}: the first layer with weights is {weighted[0].name}, expected kind conv")
    if weighted[0].reads != "all":
        raise ConfigError(f"network {origin}: {weighted[0].name} reads 'own', expected 'all' for the image")
    connected = begun = False
    for number, layer in enumerate(spec.layers, 1):
        where = f"network {origin}: layer {number} ({_label(layer)})"
        if not begun and isinstance(layer, ResponseNorm | Dropout | BatchNorm):
            raise ConfigError(f"{where} works on a column's own maps, expected behind a conv")
        begun = begun or isinstance(layer, Conv)
        if isinstance(layer, FullyConnected):
            if layer.units == "classes" and layer is not last:
                raise ConfigError(f"{where} has units 'classes', expected a number: only the last layer has them")
            connected = True
        elif connected and not isinstance(layer, Relu | Dropout):
            raise ConfigError(f"{where} stands after a fc layer, expected relu or dropout there")
        _check_layer(layer, where)


def _check_layer(layer: Any, where: str) -> None:
    if isinstance(layer, MaxPool | AvgPool) and layer.stride > layer.size:
        raise ConfigError(f"{where} has stride {layer.stride}, expected at most its size ({layer.size})")
    if isinstance(layer, SpatialNorm) and layer.size % 2 == 0:
        raise ConfigError(f"{where} has size {layer.size}, expected an odd number")
    if isinstance(layer, Conv) and layer.groups > 1 and layer.filters % layer.groups:
        raise ConfigError(f"{where} has {layer.filters} filters, expected a multiple of groups ({layer.groups})")
    if isinstance(layer, FullyConnected) and isinstance(layer.units, int) and layer.units < 1:
        raise ConfigError(f"{where} has {layer.units} units, expected at least 1")


def _sentence(error: ValidationError, values: Any) -> str:
    """The first thing wrong, a key that is not known before one that is missing: it may be the same, misspelt."""
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    loc, known, where = list(first["loc"]), sorted(Spec.model_fields), ""
    if not loc:
        return f"it is {first['input']!r}, expected {', '.join(known)}"
    if loc[:1] == ["layers"] and len(loc) > 1 and isinstance(loc[1], int):
        layer = values["layers"][loc[1]]
        where = f"layer {loc[1] + 1} ({layer.get('name', layer.get('kind')) if isinstance(layer, dict) else layer})"
        if len(loc) == 2 and (not isinstance(layer, dict) or first["type"].startswith("union_tag")):
            found = f"is of kind {layer.get('kind')!r}" if isinstance(layer, dict) else f"is {layer!r}"
            return f"{where} {found}, expected kind: {', '.join(sorted(_kinds()))}"
        known, loc = sorted(_kinds()[str(loc[2])].model_fields) if len(loc) > 2 else known, loc[3:]
    if len(loc) > 1 and loc[0] in ("weight", "bias"):
        known = sorted(Multipliers.model_fields)
    what = " ".join(part for part in (where, ".".join(str(step) for step in loc)) if part)
    message = f"{first['msg'][0].lower()}{first['msg'][1:]}"
    if first["type"] == "extra_forbidden":
        return f"{what} is an unknown key, expected one of {', '.join(known)}"
    if loc[:1] == ["units"]:
        return f"{where} units is {first['input']!r}, expected a whole number, or 'classes'"
    if loc[:1] == ["pixel_std"]:
        return f"pixel_std is {values['pixel_std']!r}, expected a number, or three of them for R, G, B"
    if isinstance(first["input"], dict | list | tuple):  # the whole layer: what is missing in it
        return f"{what}: {message}"
    return f"{what} is {first['input']!r}: {message}"


def _kinds() -> dict[str, type[BaseModel]]:
    return {get_args(one.model_fields["kind"].annotation)[0]: one for one in get_args(get_args(Layer)[0])}
