"""One batch through a network on ranks that each hold only their part: loss, gradients, statistics, put together."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dist_alexnet.network.batch_norm import parts_on
from dist_alexnet.network.build import Arithmetic, ColumnNetwork
from dist_alexnet.network.sizes import Network, network_for
from dist_alexnet.network.spec import spec_from
from dist_alexnet.parallel.layout import Layout, LogicalTensor, owned_rows
from dist_alexnet.parallel.mesh import Mesh, make_mesh

MESHES: dict[tuple[Layout, int], Mesh] = {}  # of this process: groups cost more than a small network


@dataclass(frozen=True)
class Question:
    """A network, a batch and how to compute it."""

    spec: dict[str, Any]
    size: dict[str, Any]  # of network_for
    images: int = 8
    groups: int = 1  # of batch norm
    accumulation: int = 1
    double: bool = True
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    train: bool = True
    loss_scale: float = 1.0


def graded(question: Question, layout: Layout) -> dict[str, Any] | None:
    """On every rank. Rank 0 gets: loss, ahead, held (elements a rank), and each gradient and statistic as numpy."""
    network = network_for(spec_from(question.spec, "the test"), **question.size)
    parts = parts_on(layout, question.images, question.groups, question.accumulation)
    mesh = _mesh(layout, parts.ranks)
    module = ColumnNetwork(network, mesh, 3, question.arithmetic, parts.here).train(question.train)
    module = module.double() if question.double else module
    total = torch.zeros(2, dtype=torch.float64)
    for own in _shares(question, mesh):
        x_bCHW, label_b, weight_b = _batch(network, question, own)
        loss_B, ahead_B, weight_B = module(x_bCHW, label_b, weight_b, own + 1000)
        ((loss_B * weight_B).sum() * question.loss_scale / question.images).backward()
        total += torch.stack([(loss_B.detach() * weight_B).sum(), (ahead_B * weight_B).sum()]).double()
    module.settle()
    dist.all_reduce(total, group=mesh.data)
    whole = {}
    for tensor in network.tensors:
        grad = module.parameter_of(tensor).grad
        assert grad is not None, tensor.name
        if tensor.cut == "column" and layout.replicas > 1:  # what the engine does once a step
            dist.all_reduce(grad, group=mesh.replica)
        if layout.data > 1:
            dist.all_reduce(grad, group=mesh.data)
        whole[tensor.name] = _whole(tensor, grad, mesh)
    for tensor in network.statistics:
        whole[tensor.name] = _whole(tensor, module.values_of(tensor), mesh)
    held: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(held, sum(parameter.numel() for parameter in module.parameters()))
    if dist.get_rank() > 0:
        return None
    return {"loss": float(total[0]), "ahead": float(total[1]), "held": held, "tensors": whole}


def _mesh(layout: Layout, sharing: int) -> Mesh:
    if (layout, sharing) not in MESHES:
        MESHES[layout, sharing] = make_mesh(layout, "cpu", sharing)
    return MESHES[layout, sharing]


def _shares(question: Question, mesh: Mesh) -> list[torch.Tensor]:
    """This rank's images, a list for each micro-batch: runs of one line, as the loader cuts it."""
    of_group = torch.arange(question.images).chunk(mesh.layout.data)[mesh.place.data_rank]
    micro = of_group.chunk(question.accumulation)
    return [images.chunk(mesh.layout.replicas)[mesh.place.replica] for images in micro]


def _batch(network: Network, question: Question, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    side = network.image_size
    x_BCHW = torch.rand(question.images, 3, side, side, generator=random, dtype=torch.float64) * 255 - 120
    x_BCHW *= torch.tensor(network.pixel_std)[:, None, None] / max(network.pixel_std)
    weight_B = torch.ones(question.images)
    weight_B[question.images // 3] = 0  # a picture that did not decode
    label_B = torch.arange(question.images) % network.steps[-1].gives[0]
    x = x_BCHW[own] if question.double else x_BCHW[own].float()
    return x, label_B[own], weight_B[own]


def _whole(tensor: LogicalTensor, values: torch.Tensor, mesh: Mesh) -> np.ndarray | None:
    """All rows, on rank 0; every rank that holds a row must hold the same."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (owned_rows(tensor, mesh.place).start, values.detach().double().numpy()))
    if mesh.place.rank > 0:
        return None
    full = np.full(tensor.shape, np.nan)
    for start, rows in gathered:
        there = full[start : start + len(rows)]
        assert np.isnan(there).all() or np.array_equal(there, rows), f"copies of {tensor.name} differ"
        full[start : start + len(rows)] = rows
    assert not np.isnan(full).any(), tensor.name
    return full


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of loss and of any tensor, relative to its size (or to 1e-5 of the largest gradient, where
    a gradient is nought but for rounding, as of a bias before a batch norm: 1e-9 of that is some ten float64 roundings
    of the terms that cancel)."""
    worst = abs(one["loss"] - other["loss"]) / abs(other["loss"])
    floor = 1e-5 * max(float(np.abs(values).max()) for values in other["tensors"].values())
    for name, values in other["tensors"].items():
        scale = max(float(np.abs(values).max()), floor)
        worst = max(worst, float(np.abs(one["tensors"][name] - values).max()) / scale)
    return worst
