"""What tests of several rooms share."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dist_alexnet.parallel.mesh import Mesh


@pytest.fixture(scope="module")
def alone() -> "Iterator[Mesh]":
    """The mesh of a process that is a world of its own (gloo, without a port)."""
    import torch.distributed as dist

    from dist_alexnet.parallel.layout import Layout
    from dist_alexnet.parallel.mesh import make_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield make_mesh(Layout(), "cpu")
    finally:
        dist.destroy_process_group()
