"""A network on a layout: the module that one rank holds, equal to the whole network with the others.

Shapes: b images of this replica, B images of the model group (B = b * replicas), C channels, H W pixels, u units here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dist_alexnet.errors import LayoutError
from dist_alexnet.network.batch_norm import BatchNormLayer
from dist_alexnet.network.initial import initial_rows
from dist_alexnet.network.layers import (
    ConvLayer,
    FullyConnectedLayer,
    LocalLayer,
    kept,
    response_norm,
    spatial_norm,
)
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
    Weighted,
)
from dist_alexnet.parallel.collectives import (
    averaged_logits,
    cross_entropy,
    gather_columns,
    gather_features,
    gather_images,
    gather_units,
    start_columns,
    widened,
)
from dist_alexnet.parallel.layout import Layout, LogicalTensor, Place, owned_rows
from dist_alexnet.parallel.mesh import Mesh


@dataclass(frozen=True)
class Arithmetic:
    """How a network is computed; what it computes is the same up to the rounding of these.

    compute_dtype: autocast of convolutions and products (None: as the parameters are); norms, the last layer's product,
    softmax and sums are never in half precision. exchange: what crosses the wire between columns and replicas (None:
    as it is). channels_last: of activations, never of parameters. overlap: a convolution that reads both columns begins
    with its own while the other is on its way.
    """

    compute_dtype: torch.dtype | None = None
    exchange: torch.dtype | None = None
    channels_last: bool = False
    overlap: bool = False


def check_layout(network: Network, layout: Layout) -> None:
    """Raise LayoutError if `network` cannot be cut so. Needs no process group."""
    if layout.columns > network.columns:
        raise LayoutError(
            f"parallel.columns is {layout.columns}, but the network has {network.columns} column: set it to 1"
        )
    for tensor in network.tensors:
        owned_rows(tensor, Place(layout, 0))


class ColumnNetwork(nn.Module):
    """One rank's part of a network.

    seed: starts initial values and dropout. batch_norm_parts: how many parts of the batch, each with its own
    statistics, one forward of this rank holds (network/batch_norm.py).
    """

    pixel_std_3: Tensor

    def __init__(
        self,
        network: Network,
        mesh: Mesh,
        seed: int,
        arithmetic: Arithmetic = Arithmetic(),
        batch_norm_parts: int = 1,
    ) -> None:
        super().__init__()
        check_layout(network, mesh.layout)
        self.network, self.mesh, self.seed, self.arithmetic = network, mesh, seed, arithmetic
        self.batch_norm_parts = batch_norm_parts
        self.columns_here = network.columns // mesh.layout.columns
        self.register_buffer("pixel_std_3", torch.tensor(network.pixel_std), persistent=False)
        self.weighted = nn.ModuleDict()
        for step in network.steps:
            if isinstance(step.layer, Weighted | BatchNorm):
                self.weighted[_module_name(step.layer.name)] = self._weighted(step)
        for tensor in network.tensors:
            # DeepSpeed's norm counts a tensor where it is marked, or on model rank 0. Each piece is to count once over
            # the group: fully connected rows everywhere, convolutions (the same on all replicas) on replica 0 only.
            alone = tensor.cut == "column" and mesh.place.replica > 0
            self.parameter_of(tensor).tensor_model_parallel = not alone  # type: ignore[attr-defined]

    def parameter_of(self, tensor: LogicalTensor) -> nn.Parameter:
        """This rank's rows of a logical tensor."""
        parameter: nn.Parameter = self.values_of(tensor)  # type: ignore[assignment]
        return parameter

    def values_of(self, tensor: LogicalTensor) -> Tensor:
        """This rank's rows of a logical tensor, learned or a running statistic."""
        values: Tensor = getattr(self.layer_of(tensor), tensor.name.split(".")[1])
        return values

    def layer_of(self, tensor: LogicalTensor) -> nn.Module:
        """The layer that holds a logical tensor."""
        return self.weighted[_module_name(tensor.name.split(".")[0])]

    def settle(self, dropped: bool = False) -> None:
        """After each optimizer step: take the batch's statistics into the running ones, unless the step was dropped."""
        for layer in self.weighted.values():
            if isinstance(layer, BatchNormLayer):
                layer.settle(dropped)

    def _weighted(self, step: Step) -> nn.Module:
        layer, weight, bias = step.layer, step.weight, step.bias
        assert weight is not None
        rows = owned_rows(weight.tensor, self.mesh.place)
        values = initial_rows(self.seed, weight, rows)
        constants = None if bias is None else initial_rows(self.seed, bias, rows)
        if isinstance(layer, BatchNorm):
            assert constants is not None
            return BatchNormLayer(layer, values, constants, self.mesh, self.batch_norm_parts)
        if isinstance(layer, FullyConnected):
            return FullyConnectedLayer(values, constants, *self._columns_of(layer, weight.tensor, rows))
        assert isinstance(layer, Conv | Local)
        groups = self.columns_here if layer.reads == "own" else 1
        if isinstance(layer, Local):
            return LocalLayer(layer, values, constants, groups)
        return ConvLayer(layer, values, constants, groups * layer.groups)

    def _columns_of(
        self, layer: FullyConnected, weight: LogicalTensor, rows: range
    ) -> tuple[list[tuple[int, int]] | None, int]:
        """Which column each run of this rank's rows reads, where it holds rows or features of more than one."""
        if layer.reads == "all" or self.columns_here == 1:
            return None, 1
        each = weight.shape[0] // self.columns_here
        runs = []
        for column in range(self.columns_here):
            own = range(max(rows.start, column * each), min(rows.stop, (column + 1) * each))
            if own:
                runs.append((column, len(own)))
        return runs, self.columns_here

    def forward(
        self, x_bCHW: Tensor, label_b: Tensor, weight_b: Tensor, position_b: Tensor, views: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss_B, ahead_B, weight_B) of the model group's images, the same on each of its ranks.

        views: rows of each image, next to each other, whose probabilities are averaged; only in evaluation.

        x_bCHW: this replica's images, pixels minus mean. label_b, position_b: int64. weight_b: 0 where the picture did
        not decode. loss_B is not weighted; ahead_B counts the classes that stand before the true one.
        """
        facts_b3 = torch.stack([label_b, position_b, weight_b.to(torch.int64)], dim=1)
        label_B, position_B, weight_B = gather_images(facts_b3, self.mesh).unbind(1)
        logits_Bu, first_class = self.logits(x_bCHW, position_b, position_B, weight_b)
        if views > 1:
            logits_Bu = averaged_logits(logits_Bu, views, self.mesh)
            label_B, weight_B = label_B[::views], weight_B[::views]
        loss_B, ahead_B = cross_entropy(logits_Bu, label_B, first_class, self.mesh)
        return loss_B, ahead_B, weight_B.to(loss_B.dtype)

    def logits(
        self, x_bCHW: Tensor, position_b: Tensor, position_B: Tensor, weight_b: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """(logits_Bu, first class): this rank's classes, in fp32 at least, for all images of the model group."""
        weight_b = torch.ones_like(position_b) if weight_b is None else weight_b
        x, rows, cut = self._scaled(x_bCHW), range(0), False  # cut: x holds only this rank's channels or units
        last: LogicalTensor | None = None  # the fully connected layer whose units x holds
        sent = self.arithmetic.exchange
        for step in self.network.steps:
            layer = step.layer
            if isinstance(layer, Conv | Local):
                other: tuple[Any, ...] = ()
                if layer.reads == "all" and cut:
                    x = self._as_multiplied(x, layer.name)
                    if self._overlaps(layer):
                        x, under_way = start_columns(x, self.mesh, sent)
                        other = (under_way, self.mesh.place.column)
                    else:
                        x = gather_columns(x, self.mesh, sent)
                x, cut = self._product(layer.name, x, *other), True
            elif isinstance(layer, FullyConnected):
                assert step.weight is not None
                x = self._as_multiplied(x, layer.name)
                if last is None:
                    x = gather_features(x.flatten(1), self.mesh, layer.reads, sent)
                else:
                    x = gather_units(x, last, self.mesh, layer.reads, sent)
                last = step.weight.tensor
                x, rows = self._product(layer.name, x), owned_rows(last, self.mesh.place)
            elif isinstance(layer, BatchNorm):
                x = self.weighted[_module_name(layer.name)](widened(x), weight_b)
            elif isinstance(layer, Dropout):
                position, first = (position_B, rows.start) if last else (position_b, self._first_feature(x))
                x = self._dropped(layer, x, position, first)
            else:
                x = self._pointwise(layer, x)
        return x, rows.start

    def _scaled(self, x_bCHW: Tensor) -> Tensor:
        x = x_bCHW if self.network.pixel_std == (1.0, 1.0, 1.0) else x_bCHW / self.pixel_std_3[:, None, None]
        return x.contiguous(memory_format=torch.channels_last) if self.arithmetic.channels_last else x

    def _overlaps(self, layer: Conv | Local) -> bool:
        return self.arithmetic.overlap and self.mesh.layout.columns == 2 and isinstance(layer, Conv)

    def _dtype_of(self, name: str) -> torch.dtype | None:
        """Of a layer's product: None where it stays as its weights are."""
        last = self.network.steps[-1].layer
        return None if isinstance(last, FullyConnected) and name == last.name else self.arithmetic.compute_dtype

    def _as_multiplied(self, x: Tensor, name: str) -> Tensor:
        """What is to be gathered, as the product rounds it anyway: behind a norm half as much crosses the wire."""
        dtype = self._dtype_of(name)
        return x if dtype is None or self.arithmetic.exchange is not None else x.to(dtype)

    def _product(self, name: str, x: Tensor, *other: Any) -> Tensor:
        dtype = self._dtype_of(name)
        if dtype is None:
            return self.weighted[_module_name(name)](widened(x), *other)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, dtype=dtype):
            return self.weighted[_module_name(name)](x, *other)  # type: ignore[no-any-return]

    def _pointwise(self, layer: Any, x: Tensor) -> Tensor:
        if isinstance(layer, ResponseNorm):
            return response_norm(x, layer, self.columns_here)
        if isinstance(layer, SpatialNorm):
            return spatial_norm(x, layer)
        if isinstance(layer, MaxPool):
            return F.max_pool2d(x, layer.size, layer.stride, ceil_mode=True)
        if isinstance(layer, AvgPool):
            return F.avg_pool2d(x, layer.size, layer.stride, ceil_mode=True)
        return F.relu(x)

    def _first_feature(self, x: Tensor) -> int:
        """Logical index of the first unit of a feature map: columns follow one another."""
        return self.mesh.place.column * x[0].numel()

    def _dropped(self, layer: Dropout, x: Tensor, position: Tensor, first: int) -> Tensor:
        if not self.training:
            return x * (1 - layer.rate) if layer.scale == "test" else x
        mask = kept(self.seed, layer.name, layer.rate, position, first, x[0].numel()).view(x.shape)
        return x * mask if layer.scale == "test" else x * mask / (1 - layer.rate)


def _module_name(layer: str) -> str:
    """A name that no attribute of nn.ModuleDict has, whatever the layer is called."""
    return f"layer_{layer}"
