"""A network on a layout: the module that one rank holds, equal to the whole network with the others.

Shapes: b images of this replica, B images of the model group (B = b * replicas), C channels, H W pixels, u units here.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dist_alexnet.errors import LayoutError
from dist_alexnet.network.initial import normal_rows
from dist_alexnet.network.layers import (
    ConvLayer,
    FullyConnectedLayer,
    kept,
    response_norm,
    spatial_norm,
    widened,
)
from dist_alexnet.network.spec import (
    Conv,
    Dropout,
    FullyConnected,
    MaxPool,
    Network,
    ResponseNorm,
    SpatialNorm,
    Step,
)
from dist_alexnet.parallel.collectives import (
    cross_entropy,
    gather_columns,
    gather_features,
    gather_images,
    gather_units,
)
from dist_alexnet.parallel.layout import Layout, LogicalTensor, Place, owned_rows
from dist_alexnet.parallel.mesh import Mesh


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

    seed: starts initial values and dropout. compute_dtype: autocast of convolutions and products (None: as the
    parameters are); norms, the last layer's product, softmax and sums are never in half precision.
    """

    def __init__(self, network: Network, mesh: Mesh, seed: int, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        check_layout(network, mesh.layout)
        self.network, self.mesh, self.seed, self.compute_dtype = network, mesh, seed, compute_dtype
        self.columns_here = network.columns // mesh.layout.columns
        self.weighted = nn.ModuleDict()
        for step in network.steps:
            if isinstance(step.layer, Conv | FullyConnected):
                self.weighted[_module_name(step.layer.name)] = self._weighted(step)
        for tensor in network.tensors:
            # DeepSpeed's norm counts a tensor where it is marked, or on model rank 0. Each piece is to count once over
            # the group: fully connected rows everywhere, convolutions (the same on all replicas) on replica 0 only.
            alone = tensor.cut == "column" and mesh.place.replica > 0
            self.parameter_of(tensor).tensor_model_parallel = not alone  # type: ignore[attr-defined]

    def parameter_of(self, tensor: LogicalTensor) -> nn.Parameter:
        """This rank's rows of a logical tensor."""
        layer, kind = tensor.name.split(".")
        parameter: nn.Parameter = getattr(self.weighted[_module_name(layer)], kind)
        return parameter

    def _weighted(self, step: Step) -> nn.Module:
        layer, weight = step.layer, step.weight
        assert isinstance(layer, Conv | FullyConnected)
        assert weight is not None
        rows = owned_rows(weight, self.mesh.place)
        values = normal_rows(self.seed, weight, rows, step.init_sd)
        constants = torch.full((len(rows),), float(layer.init_bias))
        if isinstance(layer, Conv):
            groups = self.columns_here if layer.reads == "own" else 1
            return ConvLayer(layer, values, constants, groups, self.mesh)
        return FullyConnectedLayer(values, constants)

    def forward(
        self, x_bCHW: Tensor, label_b: Tensor, weight_b: Tensor, position_b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss_B, ahead_B, weight_B) of the model group's images, the same on each of its ranks.

        x_bCHW: this replica's images, pixels minus mean. label_b, position_b: int64. weight_b: 0 where the picture did
        not decode. loss_B is not weighted; ahead_B counts the classes that stand before the true one.
        """
        facts_b3 = torch.stack([label_b, position_b, weight_b.to(torch.int64)], dim=1)
        label_B, position_B, weight_B = gather_images(facts_b3, self.mesh).unbind(1)
        logits_Bu, first_class = self.logits(x_bCHW, position_b, position_B)
        loss_B, ahead_B = cross_entropy(logits_Bu, label_B, first_class, self.mesh)
        return loss_B, ahead_B, weight_B.to(loss_B.dtype)

    def logits(self, x_bCHW: Tensor, position_b: Tensor, position_B: Tensor) -> tuple[Tensor, int]:
        """(logits_Bu, first class): this rank's classes, in fp32 at least, for all images of the model group."""
        x, rows, cut = x_bCHW, range(0), False  # cut: x holds only this rank's channels or units
        last: LogicalTensor | None = None  # the fully connected layer whose units x holds
        for step in self.network.steps:
            layer = step.layer
            if isinstance(layer, Conv):
                if layer.reads == "all" and cut:
                    x = gather_columns(x, self.mesh)
                x, cut = self._product(layer.name, x), True
            elif isinstance(layer, FullyConnected):
                assert step.weight is not None
                x = gather_units(x, last, self.mesh) if last else gather_features(x.flatten(1), self.mesh)
                x, last, rows = self._product(layer.name, x), step.weight, owned_rows(step.weight, self.mesh.place)
            elif isinstance(layer, Dropout):
                position, first = (position_B, rows.start) if last else (position_b, self._first_feature(x))
                x = self._dropped(layer, x, position, first)
            else:
                x = self._pointwise(layer, x)
        return x, rows.start

    def _product(self, name: str, x: Tensor) -> Tensor:
        last = self.network.steps[-1].layer
        if self.compute_dtype is None or (isinstance(last, FullyConnected) and name == last.name):
            return self.weighted[_module_name(name)](widened(x))  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, dtype=self.compute_dtype):
            return self.weighted[_module_name(name)](x)  # type: ignore[no-any-return]

    def _pointwise(self, layer: Any, x: Tensor) -> Tensor:
        if isinstance(layer, ResponseNorm):
            return response_norm(x, layer, self.columns_here)
        if isinstance(layer, SpatialNorm):
            return spatial_norm(x, layer)
        if isinstance(layer, MaxPool):
            return F.max_pool2d(x, layer.size, layer.stride, ceil_mode=True)
        return F.relu(x)

    def _first_feature(self, x: Tensor) -> int:
        """Logical index of the first unit of a feature map: columns follow one another."""
        return self.mesh.place.column * x[0].numel()

    def _dropped(self, layer: Dropout, x: Tensor, position: Tensor, first: int) -> Tensor:
        if not self.training:
            return x * (1 - layer.rate)
        mask = kept(self.seed, layer.name, layer.rate, position, first, x[0].numel())
        return x * mask.view(x.shape)


def _module_name(layer: str) -> str:
    """A name that no attribute of nn.ModuleDict has, whatever the layer is called."""
    return f"layer_{layer}"
