"""Saves under faults of the machine: a disk that is full, ranks that are killed while they write."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dist_alexnet.checkpoint import store
from dist_alexnet.checkpoint.saver import Saver
from dist_alexnet.config import Checkpoint
from dist_alexnet.engine import Fragment
from dist_alexnet.network.sizes import network_for
from dist_alexnet.network.spec import load_spec
from dist_alexnet.parallel.layout import Layout, Place, owned_rows
from dist_alexnet.parallel.mesh import Mesh
from tests.checkpoint.states import KINDS
from tests.ranks.pool import RankPool

FACTS: dict[str, Any] = {"generation": 1, "layout": {}, "versions": {}, "state": {}}
DISK_BYTES = 4 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small tmpfs cannot be mounted here: it needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def big(fill: float) -> list[Fragment]:
    """1 MiB of state, each element another number."""
    return [Fragment("fc6.weight", "weight", torch.arange(2.0**18) + fill, 0, 2**18)]


def test_a_full_disk_costs_a_save_and_nothing_else(alone: Mesh, disk: Path) -> None:
    """The last good one stands, one line says it, no room is lost, and the save after it works."""
    saver = Saver(disk, Checkpoint(keep=1, max_failures=3))
    saver.save(big(5), step=5, **FACTS)
    saver.wait()
    free_bytes = shutil.disk_usage(disk).free
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(free_bytes - 2**19))
    for step in (10, 15):
        saver.save(big(step), step=step, **FACTS)
        saver.wait()
        (news,) = saver.news()
        assert news.startswith(f"the save of step {step} failed, the last good one stands: checkpoint {disk}")
        assert "No space left on device" in news
        assert "\n" not in news
        assert shutil.disk_usage(disk).free >= 2**19 - 2**14
        assert not (disk / "checkpoints" / f"step-{step:08d}").exists()
    found, passed = store.newest_good(disk)
    assert found is not None
    assert (found.commit.step, passed) == (5, [])
    ballast.unlink()
    saver.save(big(20), step=20, **FACTS)
    saver.finish()
    assert saver.news() == []
    found, _ = store.newest_good(disk)
    assert found is not None
    assert found.commit.step == 20
    parts = [Fragment("fc6.weight", "weight", torch.full((2**18,), torch.nan), 0, 2**18)]
    store.load(found, parts)
    assert torch.equal(parts[0].values, big(20)[0].values)


# ---- killed while it writes ------------------------------------------------------------------------------------------


def full_size(fill: float) -> list[Fragment]:
    """This rank's column of net 145: on two ranks 61 M weights and their momentum, 488 MB."""
    place = Place(Layout(columns=2), dist.get_rank())
    parts = []
    for tensor in network_for(load_spec("alexnet-2012"), num_classes=1000).tensors:
        rows = owned_rows(tensor, place)
        start, stop = rows.start * tensor.row_elements, rows.stop * tensor.row_elements
        for sign, kind in enumerate(KINDS):
            values = torch.arange(start, stop, dtype=torch.float32) * (-1) ** sign + fill
            parts.append(Fragment(tensor.name, kind, values, start, tensor.elements))
    return parts


def _save_and_begin_another(run: str) -> int:
    """A good save of step 5; that of step 10 is under way when this returns."""
    saver = Saver(Path(run), Checkpoint())
    saver.save(full_size(5), step=5, **FACTS)
    saver.finish()
    saver.save(full_size(10), step=10, **FACTS)
    return os.getpid()


def _take_up(run: str) -> tuple[int, list[str]]:
    """The next start: loads what is good, checks every bit, and saves step 10 itself."""
    found, passed = store.newest_good(Path(run))
    assert found is not None
    wanted = full_size(found.commit.step)
    parts = full_size(torch.nan)
    store.load(found, parts)
    assert all(torch.equal(one.values, other.values) for one, other in zip(parts, wanted, strict=True))
    saver = Saver(Path(run), Checkpoint())
    saver.save(full_size(10), step=10, **{**FACTS, "generation": 2})
    saver.finish()
    return found.commit.step, passed


@pytest.mark.long
@pytest.mark.parametrize("part", [0.05, 0.5, 0.95])
def test_killed_while_a_full_size_state_is_written(alone: Mesh, tmp_path: Path, part: float) -> None:
    """Both ranks die in the background write of 488 MB, at different parts of it: the save before is taken up."""
    root, run = tmp_path / "checkpoints", str(tmp_path)
    with RankPool(2, tmp_path) as pool:
        pool.ask(_save_and_begin_another, run, timeout_s=300)
        whole_bytes = max(path.stat().st_size for path in root.glob("step-00000005/g0001/*.distcp"))
        deadline_s = time.monotonic() + 120
        while not (written := [path.stat().st_size for path in root.glob("step-00000010/g0001/.*.distcp.*.tmp")]) or (
            max(written) < part * whole_bytes
        ):
            assert time.monotonic() < deadline_s
            assert not (root / "step-00000010" / "g0001" / "COMMIT").exists(), "the write was too quick to be struck"
    assert not (root / "step-00000010" / "g0001" / "COMMIT").exists()
    (tmp_path / "again").mkdir()
    with RankPool(2, tmp_path / "again") as pool:
        assert pool.ask(_take_up, run, timeout_s=300) == [(5, [])] * 2
    found, passed = store.newest_good(tmp_path)
    assert found is not None
    assert (found.commit.step, found.commit.generation, passed) == (10, 2, [])
