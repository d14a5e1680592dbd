"""Whether two specs compute the same: what they say about training (initial values, rates, decay) is left out."""

from typing import Any

from dist_alexnet.errors import WeightsError
from dist_alexnet.network.spec import (
    BatchNorm,
    Conv,
    Dropout,
    FullyConnected,
    Local,
    Multipliers,
    Spec,
    Weighted,
    differences,
)
from dist_alexnet.network.weights.columns import one_column


def differences_in_function(one: Spec, other: Spec) -> list[str]:
    """Where two specs differ in what they compute at test, a sentence part each; layers must have the same names.

    Two columns and one of grouped convolutions compute the same where no layer stays in its column.
    """
    if one.columns != other.columns:
        one, other = _grouped(one), _grouped(other)
    return differences(_at_test(one), _at_test(other))


def told(differences: list[str], most: int = 3) -> str:
    """The first differences in one sentence part, and how many more there are."""
    more = f"; and {len(differences) - most} more" if len(differences) > most else ""
    return "; ".join(differences[:most]) + more


def _grouped(spec: Spec) -> Spec:
    try:
        return one_column(spec)
    except WeightsError:
        return spec


def _at_test(spec: Spec) -> Spec:
    layers = tuple(layer.model_copy(update=_plain(layer, spec.columns)) for layer in spec.layers)
    return spec.model_copy(update={"image_size": 1, "pixel_std": spec.pixel_std_3, "layers": layers})


def _plain(layer: Any, columns: int) -> dict[str, Any]:
    """What does not act at test, set to one value."""
    if isinstance(layer, Weighted):
        plain: dict[str, Any] = {
            "init": "torch",
            "init_sd": None,
            "init_bias": 0.0,
            "weight": Multipliers(),
            "bias": Multipliers(),
        }
        if isinstance(layer, Conv) and layer.stride == 1:
            plain["rounding"] = "up"  # nothing to round
        if columns == 1 and isinstance(layer, Conv | Local | FullyConnected):
            plain["reads"] = "all"  # its own column is all there is
        return plain
    if isinstance(layer, BatchNorm):
        return {"momentum": 1.0, "weight": Multipliers(), "bias": Multipliers()}
    if isinstance(layer, Dropout) and layer.scale == "training":
        return {"rate": 0.0}
    return {}
