"""A run on two ranks over a server that fails: it stops, goes on, and is the run that a local disk gives."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from dist_alexnet.config import config_from, to_yaml
from shards.index import read_index
from tests.ranks.harness import ROOT, environment, keys_by_position, losses, torchrun
from tests.ranks.pictures import CLASSES, write_shards

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("aiohttp") is None, reason="aiohttp is not installed: pip install 'dist-alexnet[dev]'"
)


def train(config: Path, name: str, *overrides: str) -> "subprocess.CompletedProcess[str]":
    command = torchrun(2, "-m", "dist_alexnet", "train", str(config), f"run.name={name}", *overrides)
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    values = {
        "run": {"dir": str(tmp_path / "runs"), "seed": 5, "steps": 12, "deterministic": True},
        "data": {
            "train": str(tmp_path / "shards" / "train.index.json"),
            "batch_size": 24,
            "workers": 1,
            "resize": 72,
            "image_size": 64,
            "window_shards": 1,
            "bad_samples": {"max_fraction": 0.2},
        },
        "network": {"num_classes": CLASSES, "width": 0.125},
        "optimizer": {"lr": 0.001},
        "checkpoint": {"every_epochs": None, "every_steps": 2},
        "evaluate": {"every_epochs": None},
        "log": {"every_steps": 1, "sample_keys": True, "pictures": False, "wandb": {"mode": "disabled"}},
    }
    write_shards(tmp_path / "shards")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config_from(values, "the test")))
    return path


def test_a_run_stops_for_storage_and_goes_on_as_if_nothing_had_been(config: Path, tmp_path: Path) -> None:
    from tests.servers.faulty import FaultyServer

    runs, served = tmp_path / "runs", Path(shutil.copytree(tmp_path / "shards", tmp_path / "served"))
    whole = train(config, "local")
    assert whole.returncode == 0, whole.stderr[-3000:]
    index = read_index(str(served / "train.index.json"))
    with FaultyServer(served) as server:
        for row in index.shards:
            server.fail(row.name, ["status-503", "wrong", None])  # which pass
        lost = served / index.shards[3].name
        lost.rename(tmp_path / "lost")
        over = [f"data.train={server.url}/train.index.json", f"data.cache.dir={tmp_path / 'cache'}"]
        stopped = train(config, "remote", *over)
        assert stopped.returncode != 0
        said = [line for line in stopped.stderr.splitlines() if line.startswith("error: ") and "rank 1:" not in line]
        assert f"{lost.name} is missing" in "".join(said)  # by rank 0, whichever rank met it
        outcome = json.loads((runs / "remote" / "outcome.json").read_text())
        assert outcome["code"] == 1
        assert f"{lost.name} is missing" in outcome["cause"]
        assert "another sha256" in stopped.stderr
        (tmp_path / "lost").rename(lost)
        taken_up = train(config, "remote", *over)
        assert taken_up.returncode == 0, taken_up.stderr[-3000:]
    assert keys_by_position(runs / "remote") == keys_by_position(runs / "local")
    assert losses(runs / "remote") == losses(runs / "local")
    assert {path.stem for path in (tmp_path / "cache").glob("*.tar")} == {row.sha256 for row in index.shards}
