"""Saving and finding checkpoints in a world of one: what counts, what is refused, what is kept."""

import io
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_alexnet.__main__ import run as run_command
from dist_alexnet.checkpoint import flat, store
from dist_alexnet.checkpoint.flat import CONTENTS
from dist_alexnet.engine import Fragment
from dist_alexnet.errors import CheckpointError
from dist_alexnet.parallel.mesh import Mesh
from shards.errors import StorageFault

SIZES = {"conv1.weight": 1000, "conv1.bias": 7, "fc8.weight": 64}


def fragments(fill: float = 0.0) -> list[Fragment]:
    """Every tensor whole; each element another number."""
    return [
        Fragment(name, kind, torch.arange(size) * (1.0 if kind == "weight" else -0.5) + fill, 0, size)
        for name, size in SIZES.items()
        for kind in ("weight", "momentum")
    ]


def save(run: Path, step: int, generation: int = 1, parts: Iterable[Fragment] | None = None) -> Path:
    return store.save(
        run,
        fragments(step) if parts is None else parts,
        step=step,
        generation=generation,
        layout={"data": 1},
        versions=store.versions(),
        state={"samples": step * 64},
    )


def empty(parts: list[Fragment]) -> list[Fragment]:
    return [
        Fragment(one.name, one.kind, torch.full_like(one.values, torch.nan), one.offset, one.total) for one in parts
    ]


def held(found: store.Found) -> float:
    """The number by which `fragments` were filled, checked in every element."""
    parts = empty(fragments())
    store.load(found, parts)
    fill = parts[0].values[0].item()
    for ours, theirs in zip(parts, fragments(fill), strict=True):
        assert torch.equal(ours.values, theirs.values)
    return fill


def pretend(run: Path, step: int, generation: int = 1, committed: bool = True) -> Path:
    """A checkpoint folder without tensors."""
    folder = run / "checkpoints" / f"step-{step:08d}" / f"g{generation:04d}"
    folder.mkdir(parents=True)
    if committed:
        write_commit(folder, step=step, generation=generation)
    return folder


def write_commit(folder: Path, **values: Any) -> None:
    good = {"step": 1, "generation": 1, "files": [], "layout": {}, "versions": {}, "state": {}, "version": 1}
    (folder / store.COMMIT).write_text(json.dumps({**good, **values}))


class Opened:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


# ---- save and load --------------------------------------------------------------------------------------------------


def test_what_is_saved_is_found_and_loaded(alone: Mesh, tmp_path: Path) -> None:
    folder = save(tmp_path, 120, generation=3)
    assert folder == tmp_path / "checkpoints" / "step-00000120" / "g0003"
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000120/g0003\n"
    found, passed = store.newest_good(tmp_path)
    assert found is not None
    assert (found.folder, passed) == (folder, [])
    assert (found.commit.step, found.commit.generation) == (120, 3)
    assert found.commit.state == {"samples": 7680}
    assert {"torch", "deepspeed", "dist_alexnet", "numpy", "pillow"} <= found.commit.versions.keys()
    assert held(found) == 120
    on_disk = {path.name for path in folder.iterdir()} - {store.COMMIT}
    assert {record.name for record in found.commit.files} == on_disk
    assert CONTENTS in on_disk


def test_any_range_can_be_asked_for(alone: Mesh, tmp_path: Path) -> None:
    save(tmp_path, 5)
    found, _ = store.newest_good(tmp_path)
    assert found is not None
    parts = [
        Fragment("conv1.weight", "weight", torch.full((300,), torch.nan), 451, 1000),
        Fragment("conv1.bias", "momentum", torch.full((1,), torch.nan), 6, 7),
    ]
    store.load(found, parts)
    assert torch.equal(parts[0].values, torch.arange(451.0, 751.0) + 5)
    assert parts[1].values.item() == 6 * -0.5 + 5


def test_no_file_of_a_checkpoint_is_written_twice(alone: Mesh, tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(StorageFault, match=r"^checkpoint .* cannot be written: rank 0: .*already exists"):
        save(tmp_path, 5, parts=fragments(99))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_disk_that_fails_is_a_storage_fault(alone: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every part of a save; what was there before stays what is found."""
    save(tmp_path, 5)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    for module, name in ((flat, "write_durably"), (store, "_record"), (store, "sync_folder"), (store, "write_durably")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(StorageFault, match=r"cannot be written: .*No space left") as caught:
                save(tmp_path, 10)
            assert "\n" not in str(caught.value)
        shutil.rmtree(tmp_path / "checkpoints" / "step-00000010")
    found, _ = store.newest_good(tmp_path)
    assert found is not None
    assert held(found) == 5


def test_a_save_with_a_hole_is_not_committed(alone: Mesh, tmp_path: Path) -> None:
    """A part that no rank wrote must be found out when it is saved, not when the run is resumed from it."""
    save(tmp_path, 5)
    short = [*fragments()[:-1], Fragment("fc8.weight", "momentum", torch.zeros(63), 0, 64)]
    with pytest.raises(StorageFault, match=r"fc8\.weight/momentum has chunks of 63 elements, expected 64"):
        save(tmp_path, 10, parts=short)
    found, passed = store.newest_good(tmp_path)
    assert found is not None
    assert (found.commit.step, passed) == (5, [])


def test_another_network_is_refused(alone: Mesh, tmp_path: Path) -> None:
    save(tmp_path, 5)
    found, _ = store.newest_good(tmp_path)
    assert found is not None
    with pytest.raises(CheckpointError, match=r"holds 1000 elements of conv1\.weight/weight, expected 1001"):
        store.load(found, [Fragment("conv1.weight", "weight", torch.zeros(1001), 0, 1001)])
    with pytest.raises(CheckpointError, match=r"holds none of conv9\.weight/weight, expected 4"):
        store.load(found, [Fragment("conv9.weight", "weight", torch.zeros(4), 0, 4)])


# ---- what counts ----------------------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "flipped":
        path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    elif how == "cut":
        path.write_bytes(data[:-1])
    elif how == "longer":
        path.write_bytes(data + b"\0")
    else:
        path.unlink()


@pytest.mark.parametrize("which", ["chunks", "contents"])
@pytest.mark.parametrize("how", ["flipped", "cut", "longer", "gone"])
def test_a_damaged_checkpoint_is_passed_over_with_a_reason(alone: Mesh, tmp_path: Path, which: str, how: str) -> None:
    save(tmp_path, 5)
    newest = save(tmp_path, 10)
    (chunks,) = newest.glob("*.distcp")
    victim = chunks if which == "chunks" else newest / CONTENTS
    damage(victim, how)
    with pytest.raises(CheckpointError, match=victim.name):
        store.verified(newest)
    found, passed = store.newest_good(tmp_path)
    assert found is not None
    assert held(found) == 5
    assert len(passed) == 1
    assert str(victim) in passed[0]
    assert "\n" not in passed[0]


def test_a_folder_without_commit_does_not_exist(alone: Mesh, tmp_path: Path) -> None:
    assert store.newest_good(tmp_path) == (None, [])
    torn = save(tmp_path, 10)
    (torn / store.COMMIT).unlink()
    assert store.newest_good(tmp_path) == (None, [])
    save(tmp_path, 5)
    found, passed = store.newest_good(tmp_path)
    assert found is not None
    assert (found.commit.step, passed) == (5, [])


def test_the_newest_generation_wins_within_a_step(alone: Mesh, tmp_path: Path) -> None:
    for generation in (2, 10, 9):
        save(tmp_path, 20, generation, fragments(generation))
    save(tmp_path, 15, 11)
    found, _ = store.newest_good(tmp_path)
    assert found is not None
    assert (found.commit.step, found.commit.generation, held(found)) == (20, 10, 10)
    damage(found.folder / CONTENTS, "gone")
    found, passed = store.newest_good(tmp_path)
    assert found is not None
    assert (found.commit.generation, held(found), len(passed)) == (9, 9, 1)


def test_steps_are_compared_as_numbers(alone: Mesh, tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 3):
        pretend(tmp_path, step)
    (tmp_path / "checkpoints" / "step-x").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    assert store.resolve(tmp_path).parent.name == "step-100000000"


# ---- hostile folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", "", "g/x"])
def test_a_commit_that_leads_elsewhere_is_refused(alone: Mesh, tmp_path: Path, name: str) -> None:
    folder = pretend(tmp_path, 1, committed=False)
    write_commit(folder, files=[{"name": name, "bytes": 1, "sha256": "0"}])
    with pytest.raises(CheckpointError, match="is not a file name"):
        store.verified(folder)
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is whole"):
        store.newest_good(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '"x"', "null", "{}", '{"files": 5}', '{"files": [5]}', '{"files": [], "step": 1}']
)
def test_what_is_no_commit_is_refused(alone: Mesh, tmp_path: Path, text: str) -> None:
    folder = pretend(tmp_path, 1, committed=False)
    (folder / store.COMMIT).write_text(text)
    with pytest.raises(CheckpointError, match=r"COMMIT cannot be read") as caught:
        store.verified(folder)
    assert "\n" not in str(caught.value)


def test_a_commit_of_a_later_version_is_refused(alone: Mesh, tmp_path: Path) -> None:
    folder = pretend(tmp_path, 1, committed=False)
    write_commit(folder, version=2)
    with pytest.raises(CheckpointError, match="version is 2, expected 1"):
        store.verified(folder)


def test_contents_that_lead_elsewhere_are_refused(alone: Mesh, tmp_path: Path) -> None:
    found = store.verified(save(tmp_path, 5))
    path = found.folder / CONTENTS
    (chunks,) = found.folder.glob("*.distcp")
    path.write_text(path.read_text().replace(chunks.name, f"../{found.folder.name}/{chunks.name}"))
    with pytest.raises(CheckpointError, match="is not a file name"):
        store.load(found, empty(fragments()))


def test_no_pickle_is_opened(alone: Mesh, tmp_path: Path) -> None:
    """Neither torch's own table of contents, were it there, nor what lies in place of a chunk."""
    found = store.verified(save(tmp_path, 5))
    mark = tmp_path / "opened"
    buffer = io.BytesIO()
    torch.save(Opened(mark), buffer)
    (found.folder / ".metadata").write_bytes(buffer.getvalue())
    assert held(found) == 5
    (chunks,) = found.folder.glob("*.distcp")
    chunks.write_bytes(buffer.getvalue())
    path = found.folder / CONTENTS
    contents = json.loads(path.read_text())
    for entry in contents["tensors"].values():
        entry["chunks"] = [[*chunk[:3], 0, len(buffer.getvalue())] for chunk in entry["chunks"]]
    path.write_text(json.dumps(contents))
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.load(found, empty(fragments()))
    assert not mark.exists()
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)  # it would have
    assert mark.exists()


# ---- resolve and prune ----------------------------------------------------------------------------------------------


def test_a_checkpoint_by_any_of_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = pretend(tmp_path, 10), pretend(tmp_path, 20, 2)
    pretend(tmp_path, 20, 3, committed=False)
    pretend(tmp_path, 30, committed=False)
    assert store.resolve(tmp_path) == newer
    assert store.resolve(newer.parent) == newer
    assert store.resolve(older.parent) == older
    assert store.resolve(older) == older
    monkeypatch.chdir(older.parent)
    assert store.resolve(Path()) == Path("g0001")


@pytest.mark.parametrize(
    "what", ["", "nothing", "file", "checkpoints/step-00000030", "checkpoints/step-00000030/g0001"]
)
def test_no_checkpoint(tmp_path: Path, what: str) -> None:
    pretend(tmp_path, 30, committed=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"holds no committed checkpoint, expected a run folder") as caught:
        store.resolve(tmp_path / what)
    assert "\n" not in str(caught.value)


def steps(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        pretend(tmp_path, step)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000040/g0001\n")
    store.prune(tmp_path, 3, 40)
    assert steps(tmp_path) == [20, 30, 40]
    store.prune(tmp_path, 3, 40)
    assert steps(tmp_path) == [20, 30, 40]
    store.prune(tmp_path, 1, 40)
    assert steps(tmp_path) == [40]
    assert (tmp_path / "checkpoints" / "latest").exists()


def test_what_an_earlier_start_saved_further_on_stays(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        pretend(tmp_path, step)
    pretend(tmp_path, 15, 2)  # taken up at 10, and only come to 15
    store.prune(tmp_path, 1, 15)
    assert steps(tmp_path) == [15, 20, 30, 40]


def test_an_uncommitted_step_does_not_count_as_kept(tmp_path: Path) -> None:
    for step, committed in ((5, False), (10, True), (20, True), (25, False), (30, True), (35, False)):
        pretend(tmp_path, step, committed=committed)
    store.prune(tmp_path, 2, 30)
    assert steps(tmp_path) == [20, 25, 30, 35]


def test_other_peoples_files_stay(tmp_path: Path) -> None:
    for step in (10, 20):
        pretend(tmp_path, step)
    for name in ("step-1", "step-0000000a", "notes"):
        (tmp_path / "checkpoints" / name).mkdir()
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000020")
    store.prune(tmp_path, 1, 5)  # nothing is committed up to 5: nothing is removed
    assert (tmp_path / "checkpoints" / "step-00000010").exists()
    pretend(tmp_path, 20)
    store.prune(tmp_path, 1, 20)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "notes",
        "step-0000000a",
        "step-00000020",
        "step-1",
    ]


# ---- the command ----------------------------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = run_command(["checkpoint", *words])
    told = capsys.readouterr()
    return code, told.out + told.err


def flip(folder: Path) -> None:
    victim = next(folder.glob("*.distcp"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)


def test_ls_and_verify(alone: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    code, told = command(capsys, "ls", str(tmp_path))
    assert code == 0
    assert [line.split("  ")[0] for line in told.splitlines()] == ["step 15", "step 10", "step 5"]
    assert command(capsys, "verify", str(tmp_path))[0] == 0
    flip(tmp_path / "checkpoints" / "step-00000010" / "g0001")
    code, told = command(capsys, "verify", str(tmp_path))
    assert code == 2
    assert [line.split()[0] for line in told.splitlines()] == ["good", "damaged", "good", "error:"]
    assert "1 of 3 checkpoints" in told


def test_prune_counts_whole_ones_only(alone: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    flip(tmp_path / "checkpoints" / "step-00000020" / "g0001")
    code, told = command(capsys, "prune", str(tmp_path), "--keep", "2")
    assert (code, told) == (0, "removed 1 steps: 5\n")
    found, _ = store.newest_good(tmp_path)
    assert found is not None
    assert held(found) == 15
    for step in (10, 15):
        flip(tmp_path / "checkpoints" / f"step-{step:08d}" / "g0001")
    code, told = command(capsys, "prune", str(tmp_path))
    assert code == 2
    assert "is whole" in told
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 3


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("ls", "verify", "prune"):
        code, told = command(capsys, word, str(tmp_path / "nowhere"))
        assert code == 2
        assert "has no folder checkpoints" in told
