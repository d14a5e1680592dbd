"""Which rank sits where, and which rows of a tensor it owns: arithmetic, without processes.

world = data x model group;  a model group = columns x replicas
rank  = (data_rank * replicas + replica) * columns + column        (columns are neighbours)
"""

from dataclasses import dataclass
from typing import Literal

from dist_alexnet.errors import LayoutError


@dataclass(frozen=True)
class Layout:
    """Sizes of the three mesh axes."""

    data: int = 1
    replicas: int = 1
    columns: int = 1

    @property
    def group_ranks(self) -> int:
        """Ranks of one model group: they hold one copy of the network between them."""
        return self.replicas * self.columns

    @property
    def world_size(self) -> int:
        return self.data * self.group_ranks


@dataclass(frozen=True)
class Place:
    """One rank's coordinates on the mesh."""

    layout: Layout
    rank: int

    @property
    def data_rank(self) -> int:
        return self.rank // self.layout.group_ranks

    @property
    def model_rank(self) -> int:
        """Rank inside the model group."""
        return self.rank % self.layout.group_ranks

    @property
    def replica(self) -> int:
        return self.model_rank // self.layout.columns

    @property
    def column(self) -> int:
        return self.model_rank % self.layout.columns


@dataclass(frozen=True)
class LogicalTensor:
    """A parameter of the whole network, before anything is cut.

    Always cut on dim 0, so that what a rank owns is one contiguous range of the flattened tensor. cut "column": a
    column's filters (convolutions), the same on all replicas. cut "group": rows spread over the whole model group
    (fully connected layers).
    """

    name: str
    shape: tuple[int, ...]
    cut: Literal["column", "group"]

    @property
    def elements(self) -> int:
        return self.row_elements * self.shape[0]

    @property
    def row_elements(self) -> int:
        count = 1
        for size in self.shape[1:]:
            count *= size
        return count


def owned_rows(tensor: LogicalTensor, place: Place) -> range:
    """Rows (dim 0) of the whole tensor that the rank at `place` holds.

    Blocks are column-major: block = column * replicas + replica, so a layer that reads only its own column finds its
    rows there. Blocks differ by at most one row where the rows do not divide; no row is padded. Network, checkpoint
    and optimizer all ask this function. Raises LayoutError where a rank would be left without a row.
    """
    layout, rows = place.layout, tensor.shape[0]
    if tensor.cut == "column":
        block, blocks = place.column, layout.columns
    else:
        block, blocks = place.column * layout.replicas + place.replica, layout.group_ranks
    if rows < blocks:
        raise LayoutError(
            f"{tensor.name} has {rows} rows, expected at least one for each of {blocks} ranks of a model group: "
            "use fewer parallel.replicas"
        )
    if tensor.cut == "column" and rows % blocks:
        raise LayoutError(f"{tensor.name} has {rows} rows, expected a multiple of {blocks} columns")
    return range(block * rows // blocks, (block + 1) * rows // blocks)
