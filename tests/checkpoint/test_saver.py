"""Saving beside training: what the thread is given, and when a save that failed is told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dist_alexnet.checkpoint import store
from dist_alexnet.checkpoint.saver import Saver
from dist_alexnet.config import Checkpoint
from dist_alexnet.engine import Fragment
from dist_alexnet.parallel.mesh import Mesh
from shards.errors import StorageFault
from tests.checkpoint.states import fragments

FACTS: dict[str, Any] = {"generation": 1, "layout": {}, "versions": {}, "state": {}}


class OnGpu(Tensor):
    """Says that it lies on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_the_thread_reads_copies_that_have_arrived(
    alone: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool
) -> None:
    """Copies from a GPU into pinned memory are only queued when `copy_` returns: the thread must not start before."""
    order = []
    whole = torch.arange(8.0)
    values = whole.as_subclass(OnGpu) if on_gpu else whole
    monkeypatch.setattr(Saver, "_stage", lambda self, part: Fragment(part.name, part.kind, whole.clone(), 0, 8))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("arrived"))
    monkeypatch.setattr(store, "save", lambda *args, **facts: order.append("read"))
    saver = Saver(tmp_path, Checkpoint())
    saver.save([Fragment("fc8.weight", "weight", values, 0, 8)], step=5, **FACTS)
    saver.finish()
    assert order == (["arrived", "read"] if on_gpu else ["read"])


@pytest.mark.parametrize("background", [True, False])
def test_a_run_does_not_end_well_without_its_last_save(
    alone: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    """One that fails costs itself while training goes on; the last one must stand, or nobody may say that it does."""
    saver = Saver(tmp_path, Checkpoint(background=background, max_failures=3))
    write = store.save

    def full(*args: Any, **facts: Any) -> Any:
        raise StorageFault("the disk is full")

    monkeypatch.setattr(store, "save", full)
    saver.save(fragments(5), step=5, **FACTS)
    saver.wait()
    saver.save(fragments(10), step=10, **FACTS)
    with pytest.raises(StorageFault, match="the disk is full"):
        saver.finish()
    monkeypatch.setattr(store, "save", write)
    again = Saver(tmp_path, Checkpoint(background=background))
    again.save(fragments(15), step=15, **FACTS)
    again.finish()
    assert again.news() == []
    ((step, folder),) = again.committed()
    assert (step, folder.url.endswith("step-00000015/g0001")) == (15, True)
    assert again.committed() == saver.committed() == []
