"""What `track replay` makes of metrics.jsonl, read back by W&B's own reader."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_alexnet.config import Config, to_yaml
from dist_alexnet.track import session
from dist_alexnet.track.jsonl import JsonLines
from dist_alexnet.track.replay import replay
from shards.errors import InputError
from tests.track.one_start import KEY, Asked, history, loss, offline_files, records, start
from tests.track.stand_in import StandIn, stand_in


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed three times, each time beyond the step from which it went on."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    for generation, (first, last) in enumerate([(0, 30), (20, 45), (40, 60), (50, 70)], 1):
        asked = Asked(str(folder), "disabled", generation, generation - 1 or None, first, last, pictures=True,
                      kill=generation < 4)  # fmt: skip
        done = start(asked, home=folder.parent, check=False)
        assert done.returncode == (-9 if generation < 4 else 0), done.stderr
    (folder / "config.yaml").write_text(to_yaml(Config()))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"generation": 4, "step": 7')  # what a kill leaves, and what a running start has half written
    return folder


@pytest.fixture
def run(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, and nobody's key."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    yield Path(shutil.copytree(killed, tmp_path / "run"))
    session.forget()


EXPECTED = [
    (step, round(loss(step, generation), 2))
    for generation, first, last in ((1, 1, 20), (2, 21, 40), (3, 41, 50), (4, 51, 70))
    for step in range(first, last + 1)
]


def test_each_step_once_over_three_kills(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    made = replay(run, mode="offline")
    assert (made.steps, made.pictures, made.restarts) == (70, 7, 3)
    again = replay(run, run_id="mine")
    assert again.run_id == "mine" != made.run_id
    assert all(path.read_bytes() == content for path, content in before.items())
    files = offline_files(run)
    assert {file.name for file in files} == {f"run-{made.run_id}.wandb", "run-mine.wandb"}
    for file in files:
        lines = records(file)
        rows = [line["history"]["item"] for line in lines if line["type"] == "history"]
        assert _losses(rows) == EXPECTED
        assert [row["_step"] for row in rows] == [row["step"] for row in rows]
        assert [row["step"] for row in rows if "pictures/filters._type" in row] == list(range(10, 71, 10))
        config = {key: value for line in lines if line["type"] == "config" for key, value in _updated(line).items()}
        assert [(one["generation"], one["step"]) for one in config["starts"]] == [(1, 0), (2, 20), (3, 40), (4, 50)]
        summary = {key: value for line in lines if line["type"] == "summary" for key, value in _updated(line).items()}
        assert (summary["restarts"], summary["step"]) == (3, 70)
    with pytest.raises(InputError, match="the id 'mine' is taken"):
        replay(run, run_id="mine")


def test_a_run_that_is_being_written_and_one_without_starts(run: Path, tmp_path: Path) -> None:
    lines = JsonLines(run / "metrics.jsonl", 4)
    lines.append({"step": 71, "samples": 0, "epoch": 7.1, "train/loss": 1.0})
    made = replay(run, mode="offline")
    assert made.steps == 71
    lines.append({"step": 72, "samples": 0, "epoch": 7.2, "train/loss": 1.0})
    (file,) = [file for file in offline_files(run) if made.run_id in file.name]
    assert len(history(file)) == 71


def test_online_it_is_a_run_of_its_own(run: Path) -> None:
    with stand_in() as service:
        done = _command(run, service.url, "--mode=online", "--project=other", "--entity=somebody", "--id=mine")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "online run mine: 70 steps, 7 pictures, 3 restarts of the training run\n"
        assert _losses(service.history("mine")) == EXPECTED
        inserted = service.runs["mine"]["inserted"]
        assert (inserted["project"], inserted["entity"]) == ("other", "somebody")
        (made,) = (run / "wandb").glob("run-*-mine")
        made.rename(run / "moved")  # so that only the service knows the id
        done = _command(run, service.url, "--mode=online", "--id=mine")
        assert done.returncode == 2
        assert done.stderr.startswith("error: W&B did not take the run (")
        assert len(done.stderr.splitlines()) == 1
        assert len(service.history("mine")) == 70


def test_bad_input(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path, **asked: Any) -> str:
        with pytest.raises(InputError) as error:
            replay(folder, **asked)
        return str(error.value)

    assert "has no metrics.jsonl" in refused(tmp_path)
    damaged = Path(shutil.copytree(run, tmp_path / "damaged"))
    (damaged / "metrics.jsonl").write_bytes(b"\0\xff\n" + b'{"generation": 1}\n{"generation": 4, "step": "8"}\n')
    assert "holds no line of a step that counts" in refused(damaged, mode="offline")
    assert "no API key" in refused(run, mode="online")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert "the mode is 'disabled', expected online or offline" in refused(run)
    (run / "wandb").mkdir(exist_ok=True)
    (run / "wandb" / "run-id.txt").write_text("own\n")
    assert "the id 'own' is taken" in refused(run, mode="offline", run_id="own")
    assert "'a/b'" in refused(run, mode="offline", run_id="a/b")


def test_a_service_that_stalls_is_not_taken_for_one_that_has_it_all(run: Path) -> None:
    with stand_in() as service:
        threading.Thread(target=_stall_once_opened, args=(service,), daemon=True).start()
        short = "from dist_alexnet.track import session; session.ARRIVES_S = 2.0; "
        program = short + "from dist_alexnet.__main__ import main; raise SystemExit(main())"
        done = _command(run, service.url, "--mode=online", program=("-c", program))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: W&B did not take the run (TimeoutError: ")


def _stall_once_opened(service: StandIn) -> None:
    while not service.runs:
        time.sleep(0.01)
    service.stalled.set()


def _command(
    run: Path, url: str, *asked: str, program: tuple[str, ...] = ("-m", "dist_alexnet")
) -> "subprocess.CompletedProcess[str]":
    """`track replay` in a process of its own: within one, W&B asks only once where its service is."""
    return subprocess.run(
        [sys.executable, *program, "track", "replay", str(run), *asked],
        env={**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
    )


def _losses(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(row["step"], round(row["train/loss"], 2)) for row in rows]


def _updated(line: dict[str, Any]) -> dict[str, Any]:
    update: dict[str, Any] = json.loads(json.dumps(line[line["type"]].get("update", {})))
    return update
