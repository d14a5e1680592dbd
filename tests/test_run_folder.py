"""A run folder belongs to one run, and every start of it has a number of its own."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from dist_alexnet.config import Config, load_config
from dist_alexnet.errors import RunFolderError
from dist_alexnet.run_folder import (
    Attempt,
    check_identity,
    claim,
    host_name,
    take_generation,
    worst_shards,
    write_outcome,
)
from dist_alexnet.track.jsonl import JsonLines, read_lines

IDENTITY: dict[str, Any] = {
    "data.digest": "abc",
    "run.seed": 0,
    "data.mean": [1.5, 2.0, 3.0],
    "network": {"width": 0.25},
}


def config(folder: Path, **run: Any) -> Config:
    return Config.model_validate({"run": {"dir": str(folder), "name": "mine", **run}})


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- claim ----------------------------------------------------------------------------------------------------------


def test_the_first_start_claims_and_the_same_run_comes_back(tmp_path: Path) -> None:
    claim(config(tmp_path / "deep" / "runs"), IDENTITY, "auto")
    before = everything(tmp_path)
    assert list(before) == ["deep/runs/mine/identity.json"]
    claim(config(tmp_path / "deep" / "runs"), json.loads(json.dumps(IDENTITY)), "auto")
    claim(config(tmp_path / "deep" / "runs", epochs=5), IDENTITY, "some/checkpoint")
    assert everything(tmp_path) == before


def test_a_new_run_may_say_never(tmp_path: Path) -> None:
    claim(config(tmp_path), IDENTITY, "never")
    before = everything(tmp_path)
    with pytest.raises(RunFolderError, match=r"holds a run already and --resume is never: choose another run\.name"):
        claim(config(tmp_path), IDENTITY, "never")
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"run.seed": 1}, "run.seed = 0, this config has 1"),
        ({"data.digest": "xyz"}, 'data.digest = "abc", this config has "xyz"'),
        ({"network": {"width": 0.5}}, "network.width = 0.25, this config has 0.5"),
        ({"data.mean": [1.5, 2.0, 4.0]}, "data.mean = [1.5, 2.0, 3.0], this config has [1.5, 2.0, 4.0]"),
        ({"new": 3}, "new = null, this config has 3"),
    ],
)
def test_another_run_is_refused_by_the_key_that_differs(tmp_path: Path, other: dict[str, Any], says: str) -> None:
    claim(config(tmp_path), IDENTITY, "auto")
    before = everything(tmp_path)
    with pytest.raises(RunFolderError) as caught:
        claim(config(tmp_path), {**IDENTITY, **other}, "auto")
    assert says in str(caught.value)
    assert str(tmp_path / "mine") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == before


def test_a_key_that_is_gone_is_a_difference() -> None:
    with pytest.raises(RunFolderError, match=r"checkpoint x is of a run with run\.seed = 0, this config has null"):
        check_identity(IDENTITY, {key: value for key, value in IDENTITY.items() if key != "run.seed"}, "checkpoint x")


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "generations", "checkpoints"])
def test_files_of_something_else_are_left_alone(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).mkdir() if "." not in name else (folder / name).write_text("precious")
    before = everything(tmp_path)
    with pytest.raises(RunFolderError, match="holds files of something that is not this run"):
        claim(config(tmp_path), IDENTITY, "auto")
    assert everything(tmp_path) == before
    assert not (folder / "identity.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "\x00"])
def test_an_identity_that_cannot_be_read_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "identity.json").write_text(text)
    with pytest.raises(RunFolderError, match="cannot be used"):
        claim(config(tmp_path), IDENTITY, "auto")
    assert everything(tmp_path) == {"mine/identity.json": text.encode()}


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a file")
    with pytest.raises(RunFolderError, match="cannot be used"):
        claim(config(tmp_path), IDENTITY, "auto")
    with pytest.raises(RunFolderError, match="cannot be used"):
        claim(config(tmp_path / "mine"), IDENTITY, "auto")


# ---- generations ----------------------------------------------------------------------------------------------------


def test_starts_are_counted_and_leave_their_config(tmp_path: Path) -> None:
    claim(config(tmp_path), IDENTITY, "auto")
    assert take_generation(config(tmp_path, epochs=1)) == 1
    assert take_generation(config(tmp_path, epochs=2)) == 2
    folder = tmp_path / "mine"
    assert [load_config(folder / "generations" / f"g000{n}.yaml").run.epochs for n in (1, 2)] == [1, 2]
    assert load_config(folder / "config.yaml").run.epochs == 2


def test_a_number_is_never_taken_again(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "generations"
    folder.mkdir(parents=True)
    (folder / "g0041.yaml").touch()  # of a start that was killed in this very moment
    (folder / "g10000.yaml").touch()
    (folder / "gone.yaml").touch()
    assert take_generation(config(tmp_path)) == 10001
    assert (folder / "g0041.yaml").read_bytes() == b""


def test_a_number_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the start writes under it is synced; were the number itself not, the next start would take it again."""
    claim(config(tmp_path), IDENTITY, "auto")
    synced, fsync = set(), os.fsync

    def recorded(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    take_generation(config(tmp_path))
    folder = tmp_path / "mine" / "generations"
    for path in (folder / "g0001.yaml", folder, folder.parent):
        assert path.stat().st_ino in synced, path
    assert [path.name for path in folder.iterdir()] == ["g0001.yaml"]


def test_threads_that_race_get_numbers_of_their_own(tmp_path: Path) -> None:
    claim(config(tmp_path), IDENTITY, "auto")
    together, taken, failed = threading.Barrier(8), [], []

    def start(number: int) -> None:
        together.wait()
        try:
            for _ in range(5):
                taken.append(take_generation(config(tmp_path, epochs=number + 1)))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(taken) == list(range(1, 41))
    load_config(tmp_path / "mine" / "config.yaml")


def test_a_folder_that_cannot_be_written_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "generations").write_text("a file")
    with pytest.raises(RunFolderError, match="cannot be used"):
        take_generation(config(tmp_path))


# ---- how it ended ---------------------------------------------------------------------------------------------------


def test_a_start_and_its_end(tmp_path: Path) -> None:
    write_outcome(tmp_path, 2, "done", 0)  # of the start before: it must not speak for this one
    attempt = Attempt(tmp_path, 3, 120, 2, {"data": 2, "columns": 2}, [host_name()])
    (start,) = read_lines(tmp_path / "attempts.jsonl")
    assert (start["generation"], start["event"], start["step"], start["from"]) == (3, "start", 120, 2)
    assert (start["layout"], start["hosts"]) == ({"data": 2, "columns": 2}, [host_name()])
    assert not (tmp_path / "outcome.json").exists()
    attempt.end("done", 0, 200)
    _, end = read_lines(tmp_path / "attempts.jsonl")
    assert {key: end[key] for key in ("generation", "event", "step", "cause", "code")} == {
        "generation": 3,
        "event": "end",
        "step": 200,
        "cause": "done",
        "code": 0,
    }
    assert json.loads((tmp_path / "outcome.json").read_text()) == {"generation": 3, "cause": "done", "code": 0}


def test_an_outcome_replaces_the_one_before(tmp_path: Path) -> None:
    write_outcome(tmp_path, 1, "DivergedError: the loss\nis nan", 1)
    write_outcome(tmp_path, None, "no such data", 2)
    assert json.loads((tmp_path / "outcome.json").read_text()) == {
        "generation": None,
        "cause": "no such data",
        "code": 2,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.json"]


def test_all_that_differs_is_named() -> None:
    """The first with its values, where it is a layer its first setting, and the others by name."""
    layer = {"kind": "conv", "filters": 48, "kernel": 11}
    known = {"network.1.conv1": layer, "network.2.relu": {"kind": "relu"}, "run.seed": 0}
    other = {"network.1.conv1": {**layer, "filters": 96}, "network.2.lrn": {"kind": "lrn"}, "run.seed": 0}
    with pytest.raises(RunFolderError) as caught:
        check_identity(known, other, "checkpoint x")
    assert "network.1.conv1.filters = 48, this config has 96 (and other network.2.lrn, network.2.relu)" in str(
        caught.value
    )


def test_the_worst_shards_are_those_of_all_starts_less_what_was_done_again(tmp_path: Path) -> None:
    assert worst_shards(tmp_path) == ""
    Attempt(tmp_path, 1, 0, None, {}, [])
    Attempt(tmp_path, 2, 10, 1, {}, [])  # took up what generation 1 had saved at step 10
    for number, step, url in ((1, 3, "b.tar"), (1, 9, "a.tar"), (1, 12, "c.tar"), (1, 13, "c.tar"), (2, 12, "a.tar")):
        lines = JsonLines(tmp_path / "ledger.jsonl", number)
        lines.append({"step": step, "url": url, "key": "k"})
        lines.close()
    assert worst_shards(tmp_path) == "a.tar (2), b.tar (1)"
    assert worst_shards(tmp_path, 1) == "a.tar (2)"


def test_a_rollback_that_comes_no_further_has_an_outcome(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, 1, 0, None, {"data": 1}, ["here"])
    attempt.rolled_back("the loss is nan", 7)
    assert not (tmp_path / "outcome.json").exists()  # the same processes go on
    attempt.end("the disk is full", 1, 7)
    assert json.loads((tmp_path / "outcome.json").read_text())["cause"] == "the disk is full"
    ends = [line["cause"] for line in read_lines(tmp_path / "attempts.jsonl") if line["event"] == "end"]
    assert ends == ["rolled back: the loss is nan"]
