"""What tests of several rooms share."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dist_alexnet.parallel.mesh import Mesh


@pytest.fixture(autouse=True)
def _same_environment() -> "Iterator[None]":
    """A process that joins ranks keeps its place in its environment: it must not be the next test's."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


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
