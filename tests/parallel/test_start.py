"""How a process leaves the others."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from dist_alexnet.environment import World
from dist_alexnet.parallel import start
from dist_alexnet.parallel.layout import Layout
from dist_alexnet.parallel.mesh import make_mesh
from dist_alexnet.parallel.start import distributed

ALONE = World(rank=0, world_size=1, local_rank=0, local_world_size=1, launcher="bare")


@pytest.fixture(autouse=True)
def _left() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize(("device", "leaves"), [("cpu", True), ("cuda:0", False)])
def test_a_rank_that_fails_waits_for_nobody(monkeypatch: pytest.MonkeyPatch, device: str, leaves: bool) -> None:
    """To leave NCCL is a collective: a rank that fails alone would wait for the others, and they for it."""
    monkeypatch.setattr(start, "_agreed_device", lambda world: torch.device(device))
    with pytest.raises(ValueError, match="this rank alone"), distributed(ALONE):
        raise ValueError("this rank alone")
    assert dist.is_initialized() is not leaves


def test_collectives_outlast_the_watchdogs_patience() -> None:
    longest_s = 4 * 300.0  # of guard.hang_s, by default, in a first step
    with distributed(ALONE):
        mesh = make_mesh(Layout(1, 1, 1), "cpu")
        for group in (dist.group.WORLD, mesh.data, mesh.model, mesh.replica, mesh.column):
            assert group is not None
            backend = group._get_backend(torch.device("cpu"))
            assert backend.options._timeout.total_seconds() > longest_s  # type: ignore[attr-defined]


def test_whoever_is_done_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_agreed_device", lambda world: torch.device("cuda", 0))
    with distributed(ALONE):
        assert dist.is_initialized()
    assert not dist.is_initialized()
