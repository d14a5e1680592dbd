"""The drill itself: real runs that are struck from outside, and what is refused before the first start."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from dist_alexnet.__main__ import run
from dist_alexnet.config import config_from, to_yaml
from dist_alexnet.drill.faults import FAULTS
from dist_alexnet.drill.processes import processes_with

ROOT = Path(__file__).parents[2]
SHORT = ("rank", "save", "agent", "torn", "disk", "shard")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled digits as shards: large enough for a download to take a while."""
    folder = tmp_path_factory.mktemp("digits")
    assert run(["shards", "build", "bundled", "digits", "--to", str(folder)]) == 0
    return folder


@pytest.fixture
def config(digits: Path, tmp_path: Path) -> Path:
    """A narrow net on two columns, saved every 5 steps."""
    values: dict[str, Any] = {
        "run": {"steps": 80, "seed": 4},
        "data": {"train": str(digits / "train.index.json"), "batch_size": 16, "workers": 0, "resize": 72},
        "network": {"num_classes": 10, "width": 0.125},
        "parallel": {"columns": 2},
        "optimizer": {"lr": 0.001},
        "checkpoint": {"every_steps": 5, "every_epochs": None},
        "log": {"digest_every_steps": 5},
    }
    values["data"] |= {"image_size": 64, "mean": [33, 33, 33]}
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config_from(values, "the test")))
    return path


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def drill(config: Path, to: Path, *arguments: str) -> int:
    return run(["drill", str(config), "--to", str(to), "--json", *arguments])


def test_six_faults_cost_nothing(
    config: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every promise is kept under each kind, no process is left, the user's shards are as they were."""
    before, to = contents(digits), tmp_path / "drill"
    arguments = ("--kills", str(len(SHORT)), "--seed", "3", "--only", ",".join(SHORT))
    capsys.readouterr()
    code = drill(config, to, *arguments)
    printed = capsys.readouterr()
    assert code == 0, printed.err
    report = json.loads(printed.out)
    assert report["held"]
    assert {name: kind["struck"] for name, kind in report["faults"].items()} == dict.fromkeys(SHORT, 1)
    assert all(report["faults"][name]["detected_s"]["max"] < 120 for name in SHORT if name != "agent")
    assert report["trouble"] == []
    assert report["runs"]
    for verdict in report["runs"]:
        assert (verdict["lost"], verdict["repeated"], verdict["wrong"]) == (0, 0, 0)
        assert verdict["samples"] == 80 * 16
        assert verdict["weights_equal"]
        assert verdict["losses_equal"]
    assert sum(verdict["starts"] for verdict in report["runs"]) >= len(SHORT)
    assert processes_with(str(to.resolve())) == {}
    assert contents(digits) == before
    # the same again has nothing left to do; with other arguments the folder is another drill's
    began_s = time.monotonic()
    assert drill(config, to, *arguments) == 0
    assert time.monotonic() - began_s < 20
    assert json.loads(capsys.readouterr().out)["faults"] == report["faults"]
    assert drill(config, to, *arguments[:-2]) == 2
    assert "holds a drill with other only" in capsys.readouterr().err


@pytest.mark.long
def test_two_hundred_kills(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all kinds, in as many runs as it takes (about an hour on two cores)."""
    data = [f"data.{split}={digits}/{split}.index.json" for split in ("train", "val")]
    code = drill(ROOT / "configs" / "drill.yaml", tmp_path / "drill", "--kills", "200", "--seed", "1", *data)
    printed = capsys.readouterr()
    assert code == 0, printed.err[-6000:]
    report = json.loads(printed.out)
    assert set(report["faults"]) == set(FAULTS)
    assert sum(kind["struck"] for kind in report["faults"].values()) == 200


REFUSED = {
    "never-saves": (("checkpoint.every_steps=null",), "checkpoint.every_steps is not set"),
    "too-short": (("run.steps=20",), "expected at least 8 x checkpoint.every_steps (5)"),
    "keeps-one": (("checkpoint.keep=1",), "checkpoint.keep is 1"),
    "saves-elsewhere": (("checkpoint.url=s3://bucket/run",), "checkpoint.url is set"),
    "unknown-fault": (("--only", "fire"), "--only names fire, expected some of rank, agent"),
    "no-evaluation": (("--only", "evaluation"), "--only names evaluation, which cannot strike here"),
    "no-digests": (("--only", "layout", "log.digest_every_steps=2"), "log.digest_every_steps is no divisor"),
    "no-layout": (("--only", "layout", "--launch", "srun true"), "--only names layout, which cannot strike here"),
    "world": (("--ranks", "3"), "world size is 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drilled_is_refused_before_the_first_start(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments, said = REFUSED[name]
    assert drill(config, tmp_path / "drill", *arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert not (tmp_path / "drill").exists()


def test_a_folder_of_something_else_is_left_alone(
    config: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(digits)
    assert drill(config, digits) == 2
    assert "holds files of something that is no drill" in capsys.readouterr().err
    assert contents(digits) == before
