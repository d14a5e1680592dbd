"""The process groups of a layout, made once at the start."""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from dist_alexnet.parallel.layout import Layout, Place


@dataclass(frozen=True)
class Mesh:
    """This rank's place and the groups it talks in. A group of one rank is never talked in."""

    place: Place
    data: dist.ProcessGroup  # same model rank, other data ranks
    model: dist.ProcessGroup  # the model group: columns x replicas, column fastest
    replica: dist.ProcessGroup  # same column, other replicas of the model group
    column: dist.ProcessGroup  # same replica, other columns of the model group

    @property
    def layout(self) -> Layout:
        return self.place.layout


def make_mesh(layout: Layout, device_type: str) -> Mesh:
    """Build the mesh of `layout` over the whole world (torch.distributed is initialised). All ranks call it."""
    axes = init_device_mesh(
        device_type,
        (layout.data, layout.replicas, layout.columns),
        mesh_dim_names=("data", "replica", "column"),
    )
    place = Place(layout, dist.get_rank())
    model = None
    for data_rank in range(layout.data):
        first = data_rank * layout.group_ranks
        group = dist.new_group(list(range(first, first + layout.group_ranks)))
        if data_rank == place.data_rank:
            model = group
    assert model is not None
    return Mesh(place, axes.get_group("data"), model, axes.get_group("replica"), axes.get_group("column"))


class ModelParallelUnit:
    """What DeepSpeed asks of an `mpu`: the model group is model parallel to it, the data axis data parallel."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def get_model_parallel_rank(self) -> int:
        return self._mesh.place.model_rank

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._mesh.model

    def get_model_parallel_world_size(self) -> int:
        return self._mesh.layout.group_ranks

    def get_data_parallel_rank(self) -> int:
        return self._mesh.place.data_rank

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._mesh.data

    def get_data_parallel_world_size(self) -> int:
        return self._mesh.layout.data
