"""Saving and finding checkpoints in a world of one: what counts, what is refused, what is kept."""

import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_alexnet.__main__ import run as run_command
from dist_alexnet.checkpoint import finding, store
from dist_alexnet.checkpoint.commit import COMMIT, Commit
from dist_alexnet.checkpoint.contents import CONTENTS, FileRecord
from dist_alexnet.checkpoint.place import Place
from dist_alexnet.checkpoint.pruning import prune
from dist_alexnet.engine import Fragment
from dist_alexnet.errors import CheckpointError
from dist_alexnet.parallel.mesh import Mesh
from shards import storage
from shards.errors import StorageFault
from tests.checkpoint import states
from tests.checkpoint.states import empty, fragments, held


def save(run: Path, step: int, generation: int = 1, parts: Iterable[Fragment] | None = None) -> Path:
    return Path(states.save(run, step, generation, parts).url)


def pretend(run: Path, step: int, generation: int = 1, committed: bool = True) -> Path:
    """A checkpoint folder without tensors."""
    folder = run / "checkpoints" / f"step-{step:08d}" / f"g{generation:04d}"
    folder.mkdir(parents=True)
    if committed:
        write_commit(folder, step=step, generation=generation)
    return folder


def write_commit(folder: Path, **values: Any) -> None:
    good: dict[str, Any] = {"step": 1, "generation": 1, "files": (), "layout": {}, "versions": {}, "state": {}}
    (folder / COMMIT).write_bytes(Commit(**{**good, **values}).to_json())


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
    assert (found.folder, passed) == (Place.at(folder), [])
    assert (found.commit.step, found.commit.generation) == (120, 3)
    assert found.commit.state == {"samples": 7680}
    assert {"torch", "deepspeed", "dist_alexnet", "numpy", "pillow"} <= found.commit.versions.keys()
    assert held(found) == 120
    on_disk = {path.name for path in folder.iterdir()} - {COMMIT}
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
    with pytest.raises(StorageFault, match=r"^checkpoint .* is committed already: it is not written again"):
        save(tmp_path, 5, parts=fragments(99))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_disk_that_fails_is_a_storage_fault(alone: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever file of a save finds it full: the one before is what is found, and what was written makes room."""
    save(tmp_path, 5)
    write = storage.write_atomic
    for victim in (".distcp", CONTENTS, COMMIT):

        def full(url: str, data: Any, victim: str = victim) -> None:
            if url.endswith(victim):
                raise OSError(28, "No space left on device")
            write(url, data)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_atomic", full)
            with pytest.raises(StorageFault, match=r"cannot be written: .*No space left") as caught:
                save(tmp_path, 10)
            assert "\n" not in str(caught.value)
        assert not (tmp_path / "checkpoints" / "step-00000010" / "g0001").exists()
    found, _ = store.newest_good(tmp_path)
    assert found is not None
    assert held(found) == 5
    assert held(store.verified(Place.at(save(tmp_path, 10)))) == 10


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
        store.verified(Place.at(newest))
    found, passed = store.newest_good(tmp_path)
    assert found is not None
    assert held(found) == 5
    assert len(passed) == 1
    assert str(victim) in passed[0]
    assert "\n" not in passed[0]


def test_a_flipped_bit_is_found_wherever_it_is(alone: Mesh, tmp_path: Path) -> None:
    """In every byte of COMMIT and of the table, and here and there in the chunks."""
    save(tmp_path, 5)
    newest = save(tmp_path, 10)
    for path in sorted(newest.iterdir()):
        whole = path.read_bytes()
        for at in range(0, len(whole), 1 if len(whole) < 10_000 else 997):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            with pytest.raises(CheckpointError) as caught:
                store.check(Place.at(newest))
            assert "\n" not in str(caught.value)
        found, passed = store.newest_good(tmp_path)
        assert (held(found), len(passed)) == (5, 1)
        path.write_bytes(whole)
    assert held(store.newest_good(tmp_path)[0]) == 10


def test_a_folder_without_commit_does_not_exist(alone: Mesh, tmp_path: Path) -> None:
    assert store.newest_good(tmp_path) == (None, [])
    torn = save(tmp_path, 10)
    (torn / COMMIT).unlink()
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
    damage(Path(found.folder.url) / CONTENTS, "gone")
    found, passed = store.newest_good(tmp_path)
    assert found is not None
    assert (found.commit.generation, held(found), len(passed)) == (9, 9, 1)


def test_steps_are_compared_as_numbers(alone: Mesh, tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 3):
        pretend(tmp_path, step)
    (tmp_path / "checkpoints" / "step-x").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    assert finding.resolve(tmp_path).parent.name == "step-100000000"


# ---- hostile folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", "", "g/x"])
def test_a_commit_that_leads_elsewhere_is_refused(alone: Mesh, tmp_path: Path, name: str) -> None:
    folder = pretend(tmp_path, 1, committed=False)
    write_commit(folder, files=(FileRecord(name, 1, "0"),))
    with pytest.raises(CheckpointError, match="is not a file name"):
        store.verified(Place.at(folder))
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is whole"):
        store.newest_good(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '"x"', "null", "{}", '{"files": 5}', '{"files": [5]}', '{"files": [], "step": 1}']
)
def test_what_is_no_commit_is_refused(alone: Mesh, tmp_path: Path, text: str) -> None:
    folder = pretend(tmp_path, 1, committed=False)
    (folder / COMMIT).write_text(text)
    with pytest.raises(CheckpointError, match=r"COMMIT cannot be read") as caught:
        store.verified(Place.at(folder))
    assert "\n" not in str(caught.value)


def test_a_commit_of_a_later_version_is_refused(alone: Mesh, tmp_path: Path) -> None:
    folder = pretend(tmp_path, 1, committed=False)
    write_commit(folder, version=3)
    with pytest.raises(CheckpointError, match="version is 3, expected 2"):
        store.verified(Place.at(folder))


def test_contents_that_lead_elsewhere_are_refused(alone: Mesh, tmp_path: Path) -> None:
    found = store.verified(Place.at(save(tmp_path, 5)))
    folder = Path(found.folder.url)
    path = folder / CONTENTS
    (chunks,) = folder.glob("*.distcp")
    path.write_text(path.read_text().replace(chunks.name, f"../{folder.name}/{chunks.name}"))
    with pytest.raises(CheckpointError, match="is not a file name"):
        store.load(found, empty(fragments()))


def test_no_pickle_is_opened(alone: Mesh, tmp_path: Path) -> None:
    """Neither torch's own table of contents, were it there, nor what lies in place of a chunk."""
    found = store.verified(Place.at(save(tmp_path, 5)))
    mark = tmp_path / "opened"
    buffer = io.BytesIO()
    torch.save(Opened(mark), buffer)
    folder = Path(found.folder.url)
    (folder / ".metadata").write_bytes(buffer.getvalue())
    assert held(found) == 5
    (chunks,) = folder.glob("*.distcp")
    chunks.write_bytes(buffer.getvalue())
    path = folder / CONTENTS
    contents = json.loads(path.read_text())
    for entry in contents["tensors"].values():
        entry["chunks"] = [[*chunk[:3], 0, len(buffer.getvalue())] for chunk in entry["chunks"]]
    path.write_text(json.dumps(contents))
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.load(found, empty(fragments()))
    assert not mark.exists()
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)  # it would have
    assert mark.exists()


def test_a_checkpoint_of_someone_else_runs_nothing(alone: Mesh, tmp_path: Path) -> None:
    """With a COMMIT that vouches for a pickle in place of a chunk: it is whole, and opened by nobody."""
    found = store.verified(Place.at(save(tmp_path, 5)))
    mark, folder = tmp_path / "opened", Path(found.folder.url)
    bait = pickle.dumps(Opened(mark), protocol=2)
    (chunks,) = folder.glob("*.distcp")
    chunks.write_bytes(bait)
    contents = json.loads((folder / CONTENTS).read_text())
    for entry in contents["tensors"].values():
        entry["chunks"] = [[*chunk[:3], 0, len(bait)] for chunk in entry["chunks"]]
    (folder / CONTENTS).write_text(json.dumps(contents))
    files = tuple(
        FileRecord(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in (chunks, folder / CONTENTS)
    )
    (folder / COMMIT).write_bytes(replace(found.commit, files=files).to_json())
    again, passed = store.find(tmp_path)
    assert passed == []
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.load(again, empty(fragments()))
    assert not mark.exists()
    pickle.loads(bait)  # it would have
    assert mark.exists()


# ---- resolve and prune ----------------------------------------------------------------------------------------------


def test_a_checkpoint_by_any_of_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = pretend(tmp_path, 10), pretend(tmp_path, 20, 2)
    pretend(tmp_path, 20, 3, committed=False)
    pretend(tmp_path, 30, committed=False)
    assert finding.resolve(tmp_path).path == newer
    assert finding.resolve(newer.parent).path == newer
    assert finding.resolve(older.parent).path == older
    assert finding.resolve(older).path == older
    monkeypatch.chdir(older.parent)
    assert finding.resolve(Path()).path == Path("g0001")


@pytest.mark.parametrize(
    "what", ["", "nothing", "file", "checkpoints/step-00000030", "checkpoints/step-00000030/g0001"]
)
def test_no_checkpoint(tmp_path: Path, what: str) -> None:
    pretend(tmp_path, 30, committed=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"holds no committed checkpoint, expected a run folder") as caught:
        finding.resolve(tmp_path / what)
    assert "\n" not in str(caught.value)


def steps(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        pretend(tmp_path, step)
    (tmp_path / "checkpoints" / "latest").write_text("step-00000040/g0001\n")
    prune(tmp_path, 3, 40)
    assert steps(tmp_path) == [20, 30, 40]
    prune(tmp_path, 3, 40)
    assert steps(tmp_path) == [20, 30, 40]
    prune(tmp_path, 1, 40)
    assert steps(tmp_path) == [40]
    assert (tmp_path / "checkpoints" / "latest").exists()


def test_what_an_earlier_start_saved_further_on_stays(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        pretend(tmp_path, step)
    pretend(tmp_path, 15, 2)  # taken up at 10, and only come to 15
    prune(tmp_path, 1, 15)
    assert steps(tmp_path) == [15, 20, 30, 40]


def test_an_older_start_takes_nothing_from_a_newer_one(tmp_path: Path) -> None:
    for step, generation in ((5, 1), (10, 1), (10, 2), (12, 2), (20, 1)):
        pretend(tmp_path, step, generation)
    assert prune(tmp_path, 1, 20, generation=1) == [5, 10]
    left = sorted(path.parent for path in (tmp_path / "checkpoints").glob("*/*/COMMIT"))
    assert [f"{path.parent.name[-2:]}/{path.name}" for path in left] == ["10/g0002", "12/g0002", "20/g0001"]
    assert prune(tmp_path, 1, 20, generation=2) == [10, 12]  # 20 counts for the newer one: it may be taken up there


def test_an_uncommitted_step_does_not_count_as_kept(tmp_path: Path) -> None:
    for step, committed in ((5, False), (10, True), (20, True), (25, False), (30, True), (35, False)):
        pretend(tmp_path, step, committed=committed)
    prune(tmp_path, 2, 30)
    assert steps(tmp_path) == [20, 25, 30, 35]


def test_other_peoples_files_stay(tmp_path: Path) -> None:
    for step in (10, 20):
        pretend(tmp_path, step)
    for name in ("step-1", "step-0000000a", "notes"):
        (tmp_path / "checkpoints" / name).mkdir()
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000020")
    prune(tmp_path, 1, 5)  # nothing is committed up to 5: nothing is removed
    assert (tmp_path / "checkpoints" / "step-00000010").exists()
    pretend(tmp_path, 20)
    prune(tmp_path, 1, 20)
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
        assert "holds no committed checkpoint" in told
