"""A network and its costs as plain text, for `network show`."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction

from dist_alexnet.errors import ConfigError, LayoutError
from dist_alexnet.network.cost import EXCHANGE_BYTES, FP32_BYTES, LayerCost, Sent, layer_costs, sent_on
from dist_alexnet.network.sizes import Network
from dist_alexnet.network.spec import AvgPool, Conv, FullyConnected, Local, MaxPool, Relu, ResponseNorm, SpatialNorm
from dist_alexnet.parallel.layout import Layout

HEAD = ("layer", "output", "elements", "weights", "biases", "MAC", "a column reads")


def read_layout(text: str, network: Network) -> Layout:
    """The model group of `columns,replicas`. Raises ConfigError, or LayoutError where the network has fewer columns."""
    found = re.fullmatch(r"([1-9]\d*),([1-9]\d*)", text.strip())
    if found is None:
        raise ConfigError(f"--layout is {text!r}, expected columns,replicas such as 2,1")
    columns, replicas = (int(part) for part in found.groups())
    if columns > network.columns:
        raise LayoutError(f"--layout is {text!r}, but the network has {_columns(network)}: give 1,{replicas}")
    return Layout(1, replicas, columns)


def layers_text(network: Network) -> str:
    """A table of the layers: for one image, of the whole network."""
    costs = layer_costs(network)
    rows: list[tuple[str, ...]] = [HEAD]
    for number, cost in enumerate(costs):
        if isinstance(cost.step.layer, Relu):
            continue
        then = number + 1 < len(costs) and isinstance(costs[number + 1].step.layer, Relu)
        rows.append(_row(cost, network.columns, " + relu" if then else ""))
    weights, biases = sum(cost.weights for cost in costs), sum(cost.biases for cost in costs)
    macs = sum(cost.macs for cost in costs)
    rows.append(("sum", "", "", _number(weights), _number(biases), _number(macs), ""))
    told = f"{_columns(network)}, {network.image_size} pixels, {network.parameters:,} parameters"
    return f"{told}\n\n{_aligned(rows, left=(0, 1, 6))}"


def layout_text(network: Network, layout: Layout, images: int, exchange: str) -> str:
    """What each rank holds and sends. images: of a model group, in a step.

    exchange: a key of EXCHANGE_BYTES, else ConfigError. Raises LayoutError where the network cannot be cut so.
    """
    if exchange not in EXCHANGE_BYTES:
        raise ConfigError(f"--exchange is {exchange!r}, expected one of {', '.join(EXCHANGE_BYTES)}")
    sent, size = sent_on(network, layout), EXCHANGE_BYTES[exchange]
    lines = [
        f"layout {layout.columns} columns x {layout.replicas} replicas: {layout.group_ranks} ranks of a model group; "
        f"a rank holds at most {sent.held:,} parameters"
    ]
    if layout.group_ranks > 1:
        lines += ["", f"sent by each rank for an image of the model group, activations in {exchange}", ""]
        lines += [_crossings_text(sent, size), "", *_step_lines(sent, layout, images, size)]
    lines.append(
        f"over D data ranks, once a step: all-reduce of {sent.held:,} gradients ({_bytes(sent.held * FP32_BYTES)}): "
        "each rank sends 2 (D - 1) / D times that"
    )
    return "\n".join(lines)


def _columns(network: Network) -> str:
    return "1 column" if network.columns == 1 else f"{network.columns} columns"


def _row(cost: LayerCost, columns: int, then: str) -> tuple[str, ...]:
    layer = cost.step.layer
    name = getattr(layer, "name", layer.kind)
    return (
        f"{name}{then}",
        "x".join(str(size) for size in cost.step.gives),
        _number(cost.outputs),
        _number(cost.weights),
        _number(cost.biases),
        _number(cost.macs),
        _reads(cost, columns),
    )


def _reads(cost: LayerCost, columns: int) -> str:
    layer, reads = cost.step.layer, cost.step.reads
    own = f"own {reads[0] // columns}" if columns > 1 else f"all {reads[0]}"
    if isinstance(layer, Conv | Local):
        groups = layer.groups if isinstance(layer, Conv) else 1
        parts = f" in {groups} groups" if groups > 1 else ""
        return (f"all {reads[0]}" if layer.reads == "all" else own) + f" maps{parts}"
    if isinstance(layer, FullyConnected):
        features = math.prod(reads)
        return f"own {features // columns}" if layer.reads == "own" and columns > 1 else f"all {features}"
    if isinstance(layer, ResponseNorm):
        return f"{own} maps, {layer.size} neighbours"
    if isinstance(layer, SpatialNorm | MaxPool | AvgPool):
        return f"{own} maps, {layer.size} x {layer.size} pixels"
    return own


def _crossings_text(sent: Sent, size: int) -> str:
    rows: list[tuple[str, ...]] = [("before", "gathered", "of ranks", "elements forward", "elements backward", "bytes")]
    for one in sent.crossings:
        sent_bytes = _number(one.sent_bytes(size))
        rows.append((one.before, one.what, str(one.ranks), *2 * (_number(one.elements),), sent_bytes))
    rows.append(("sum", "", "", *2 * (_number(sent.elements),), _number(2 * sent.elements * size)))
    return _aligned(rows, left=(0, 1))


def _step_lines(sent: Sent, layout: Layout, images: int, size: int) -> list[str]:
    lines = [f"softmax, labels and places, for an image: {_number(sent.small_bytes)} bytes"]
    if layout.replicas > 1:
        lines.append(
            "sums over the replicas, once a step: "
            f"{_number(sent.replica_elements)} elements in fp32, {_bytes(sent.replica_elements * FP32_BYTES)}"
        )
    if sent.statistics:
        lines.append(
            "batch norm, where ranks share a part's statistics (not counted here): all-reduces of "
            f"{2 * sent.statistics:,} elements and a count for each norm, forward and backward"
        )
    lines.append(f"a step of {images} images: {_bytes(sent.step_bytes(images, size))} by each rank")
    return lines


def _number(value: int | Fraction) -> str:
    """0 is empty: most layers have no weights."""
    if not value:
        return ""
    return f"{int(value):,}" if value == int(value) else f"{float(value):,.1f}"


def _bytes(value: int | Fraction) -> str:
    return f"{float(value) / 1e6:,.1f} MB"


def _aligned(rows: Sequence[tuple[str, ...]], left: tuple[int, ...]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
