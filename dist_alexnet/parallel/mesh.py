"""The process groups of a layout, made once at the start."""

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from dist_alexnet.parallel.layout import Layout, Place

# Of every collective. NCCL's own 10 minutes are less than the watchdog's patience with a first step, and name nobody.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Mesh:
    """This rank's place and the groups it talks in. A group of one rank is never talked in."""

    place: Place
    data: dist.ProcessGroup  # same model rank, other data ranks
    model: dist.ProcessGroup  # the model group: columns x replicas, column fastest
    replica: dist.ProcessGroup  # same column, other replicas of the model group
    column: dist.ProcessGroup  # same replica, other columns of the model group
    sharing: dist.ProcessGroup | None = None  # same column, neighbours that share a batch norm's statistics

    @property
    def layout(self) -> Layout:
        return self.place.layout


def make_mesh(layout: Layout, device_type: str, sharing: int = 1) -> Mesh:
    """Build the mesh of `layout` over the whole world (torch.distributed is initialised). All ranks call it.

    sharing: how many neighbours of one column share a batch norm's statistics.
    """
    axes = init_device_mesh(
        device_type,
        (layout.data, layout.replicas, layout.columns),
        mesh_dim_names=("data", "replica", "column"),
    )
    place = Place(layout, dist.get_rank())
    model = _own_group(
        [
            range(data * layout.group_ranks, (data + 1) * layout.group_ranks)  # column fastest, then replica
            for data in range(layout.data)
        ]
    )
    assert model is not None
    shared = None
    if sharing > 1:
        lines = [range(column, layout.world_size, layout.columns) for column in range(layout.columns)]
        shared = _own_group([line[first : first + sharing] for line in lines for first in range(0, len(line), sharing)])
    mesh = Mesh(place, axes.get_group("data"), model, axes.get_group("replica"), axes.get_group("column"), shared)
    for group in (mesh.data, mesh.model, mesh.replica, mesh.column, mesh.sharing):
        if group is not None:
            _set_pg_timeout(PATIENCE, group)
    return mesh


def _own_group(groups: list[range]) -> dist.ProcessGroup | None:
    """Make all groups, as every rank must; the one that this rank is in."""
    own = None
    for ranks in groups:
        group = dist.new_group(list(ranks))
        if dist.get_rank() in ranks:
            own = group
    return own


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
