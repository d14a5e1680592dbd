"""What a network costs: parameters, multiplications, and what each rank sends on a layout. Arithmetic only.

"An image" is an image of one model group, which its replicas share between them. A rank of an all-gather sends its part
to every other rank, a rank of a reduce-scatter sends every other rank its part, and a rank of an all-reduce of n
elements sends 2 (ranks - 1) / ranks * n, as rings do. Not counted: statistics of a batch norm that ranks share, norms
of gradients, pixels where decoding is shared and, with an exchange in half precision, an exponent a part and forward.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from dist_alexnet.network.sizes import Network, Step
from dist_alexnet.network.spec import BatchNorm, Conv, FullyConnected, Local
from dist_alexnet.parallel.layout import Layout, LogicalTensor, Place, owned_rows

EXCHANGE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
FP32_BYTES = 4
FACTS_BYTES = 3 * 8  # label, position and weight of an image, int64


@dataclass(frozen=True)
class LayerCost:
    """One layer of the whole network. macs: multiplications of one image forward, at the places that overhang too."""

    step: Step
    weights: int
    biases: int
    outputs: int
    macs: int


@dataclass(frozen=True)
class Crossing:
    """A place where a layer's input is gathered forward, and its gradient reduce-scattered backward.

    elements: sent by each rank for an image, one way; the other way as many.
    """

    before: str
    what: Literal["channels", "features", "units"]
    ranks: int
    elements: Fraction

    def sent_bytes(self, element_bytes: int) -> Fraction:
        """By each rank for an image, forward and backward together."""
        return 2 * self.elements * element_bytes


@dataclass(frozen=True)
class Sent:
    """Everything a rank sends on a layout.

    small_bytes: for an image: what softmax needs, and label, position and weight of the images of other replicas.
    replica_elements: fp32, once a step: gradients of column-cut tensors, and statistics of batch norms.
    held: parameters that the rank holds, which is what is reduced over the data ranks. statistics: maps of batch norms.
    """

    crossings: tuple[Crossing, ...]
    small_bytes: Fraction
    replica_elements: Fraction
    held: int
    statistics: int

    @property
    def elements(self) -> Fraction:
        """Activations sent by each rank for an image, forward; backward as many gradients."""
        return sum((crossing.elements for crossing in self.crossings), Fraction(0))

    def step_bytes(self, images: int, element_bytes: int) -> Fraction:
        """By each rank in a step of that many images of the model group, without what crosses the data ranks."""
        each = 2 * self.elements * element_bytes + self.small_bytes
        return images * each + self.replica_elements * FP32_BYTES


def layer_costs(network: Network) -> tuple[LayerCost, ...]:
    """What each layer costs, in order."""
    return tuple(
        LayerCost(
            step,
            step.weight.tensor.elements if step.weight else 0,
            step.bias.tensor.elements if step.bias else 0,
            math.prod(step.gives),
            math.prod(step.gives) * step.fan_in,
        )
        for step in network.steps
    )


def sent_on(network: Network, layout: Layout) -> Sent:
    """What each rank of a model group sends. Raises LayoutError where the network cannot be cut so."""
    replicas, group = layout.replicas, layout.group_ranks
    softmax = 2 * _all_reduce(2, group) * FP32_BYTES  # (max, true) and (sum, ahead)
    facts = Fraction(FACTS_BYTES * (replicas - 1), replicas)
    # Rows that do not divide: the rank with the most.
    held = max(_held(network.tensors, layout, rank) for rank in range(group))
    cut = _held([tensor for tensor in network.tensors if tensor.cut == "column"], layout, 0)
    maps = [step.gives[0] // layout.columns for step in network.steps if isinstance(step.layer, BatchNorm)]
    settled = sum(2 * each + 1 for each in maps)  # of each map a mean and a variance, and how many parts those are of
    return Sent(
        tuple(_crossings(network, layout)), softmax + facts, _all_reduce(cut + settled, replicas), held, sum(maps)
    )


def data_bytes(held: int, data: int, zero_stage: int, accumulation: int) -> Fraction:
    """What crosses the data ranks in a step, sent by each: gradients in fp32, and weights where ZeRO cuts them.

    held: parameters of a rank, as in `Sent`. ZeRO 1 and 2 all-reduce gradients and gather the weights after the update;
    2 does the former, and 3 its reduce-scatter and two gathers, in each micro-batch.
    """
    passes = {0: 2, 1: 3, 2: 2 * accumulation + 1, 3: 3 * accumulation}[zero_stage]
    return Fraction(passes * (data - 1) * held * FP32_BYTES, data)


def _crossings(network: Network, layout: Layout) -> Iterator[Crossing]:
    columns, replicas, group = layout.columns, layout.replicas, layout.group_ranks
    begun, last = False, None
    for step in network.steps:
        layer = step.layer
        here = Fraction(math.prod(step.reads), columns)
        if isinstance(layer, Conv | Local):
            if begun and layer.reads == "all" and columns > 1:
                yield Crossing(layer.name, "channels", columns, here * (columns - 1) / replicas)
            begun = True
        elif isinstance(layer, FullyConnected):
            ranks = group if layer.reads == "all" else replicas
            if ranks > 1 and last is None:
                yield Crossing(layer.name, "features", ranks, here * (ranks - 1) / replicas)
            elif ranks > 1 and last is not None:
                yield Crossing(layer.name, "units", ranks, Fraction(_most_rows(last, layout) * (ranks - 1)))
            assert step.weight is not None
            last = step.weight.tensor


def _most_rows(tensor: LogicalTensor, layout: Layout) -> int:
    """Blocks that are shorter are padded to this."""
    return max(len(owned_rows(tensor, Place(layout, rank))) for rank in range(layout.group_ranks))


def _held(tensors: "list[LogicalTensor] | tuple[LogicalTensor, ...]", layout: Layout, rank: int) -> int:
    return sum(len(owned_rows(tensor, Place(layout, rank))) * tensor.row_elements for tensor in tensors)


def _all_reduce(elements: int, ranks: int) -> Fraction:
    return Fraction(2 * (ranks - 1) * elements, ranks)
