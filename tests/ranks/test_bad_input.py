"""What users get wrong, on a real set and a real run: one line, exit code 2, and nothing overwritten."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from dist_alexnet.__main__ import run
from tests.ranks.harness import ROOT, Case, environment, run_cases, torchrun


def digest_of(folder: Path) -> dict[str, str]:
    """Every file below a folder and its sha256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def trained(config: Path, runs: Path) -> Path:
    """A run that stands at step 4, to be left alone."""
    run_cases(1, config, [Case("stands", ("run.steps=4",))])
    return runs / "stands"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a wrong command gives."""
    capsys.readouterr()
    assert run(list(arguments)) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert captured.out == ""
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


WRONG = [
    (["optimiser.lr=1"], "did you mean optimizer"),
    (["parallel.micro_batch=7"], "micro_batch is 7"),
    (["parallel.columns=2"], "world size is 1"),
    (["parallel.replicas=3"], "world size is 1"),
    (["network.num_classes=4"], "5 classes"),
    (["network.width=0.11"], "conv1"),
    (["network.name=resnet"], "alexnet-2012"),
    (["data.image_size=9", "data.resize=9"], "conv1 sees 9 pixels"),
    (["data.train=nowhere/train.index.json"], "nowhere"),
    (["data.exclude=[train-000099.tar]"], "train-0000"),
    (["run.seed=6"], "run.seed = 5"),
    (["optimizer.lr=0.002"], "optimizer"),
    (["data.batch_size=12"], "data.batch_size = 24"),
    (["data.exclude=[train-000003.tar]"], "data.digest"),
    (["network.dropout=0.1"], "network"),
]


@pytest.mark.parametrize(("overrides", "said"), WRONG, ids=[" ".join(over) for over, _ in WRONG])
def test_a_wrong_setting(
    config: Path, trained: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    before = digest_of(trained.parent)
    assert said in refused(capsys, "train", str(config), "run.name=stands", "run.steps=8", *overrides)
    assert digest_of(trained.parent) == before


def test_resume_never_and_a_path_that_is_none(config: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest_of(trained)
    line = refused(capsys, "train", str(config), "run.name=stands", "--resume", "never")
    assert "holds a run already" in line
    line = refused(capsys, "train", str(config), "run.name=stands", "--resume", str(trained / "keys"))
    assert "no committed checkpoint" in line
    assert digest_of(trained) == before


def test_a_missing_config_and_checkpoint(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a file" in refused(capsys, "train", str(tmp_path / "none.yaml"))
    val = str(config.parent / "shards" / "val.index.json")
    assert "no committed checkpoint" in refused(capsys, "evaluate", str(tmp_path), "--shards", val)


def test_shards_that_are_not_right(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tars without an index, an index that is not JSON, and one whose labels go past its classes."""
    folder = config.parent / "shards"
    for tar in folder.glob("train-*.tar"):
        (tmp_path / tar.name).symlink_to(tar)
    index = tmp_path / "train.index.json"
    arguments = ("train", str(config), "run.name=other", f"data.train={index}")
    assert "dist-alexnet shards index" in refused(capsys, *arguments)
    index.write_text("{")
    refused(capsys, *arguments)
    document = json.loads((folder / "train.index.json").read_text())
    (tmp_path / "train.index.npy").write_bytes((folder / "train.index.npy").read_bytes())
    index.write_text(json.dumps({**document, "num_classes": 3, "classes": None}))
    refused(capsys, *arguments)
    assert not (config.parent / "runs" / "other").exists()


def test_under_torchrun(config: Path, trained: Path) -> None:
    """Three ranks that two columns do not divide: one line, and nothing of the run that stands is touched."""
    before = digest_of(trained)
    command = torchrun(3, "-m", "dist_alexnet", "train", str(config), "run.name=stands", "parallel.columns=2")
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        "error: world size is 3, expected a multiple of parallel.columns (2) x parallel.replicas (1) = 2: "
        "change one of them"
    ]
    assert digest_of(trained) == before


def test_a_mistake_in_its_own_folder_under_torchrun(config: Path, runs: Path, trained: Path) -> None:
    """torchrun would start again after a failure: the mistake goes to outcome.json, and the ranks end well."""
    run_cases(1, config, [Case("own", ("run.steps=2",))])
    command = torchrun(2, "-m", "dist_alexnet", "train", str(config), "run.name=own", "--resume", str(trained / "keys"))
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        f"error: {trained / 'keys'} holds no committed checkpoint, expected a run folder, the URL of a run's "
        "checkpoints, or a folder such as RUN/checkpoints/step-00000120: name one that has a COMMIT file"
    ]
    assert json.loads((runs / "own" / "outcome.json").read_text())["code"] == 2


def test_too_many_torn_pictures(config: Path, runs: Path) -> None:
    """Past data.bad_samples.max_fraction the run stops, naming the worst shards and a picture."""
    command = torchrun(
        2, "-m", "dist_alexnet", "train", str(config), "run.name=torn-pictures", "data.bad_samples.max_fraction=0.0001"
    )
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "did not decode" in done.stderr
    assert "the last train-0057 in " in done.stderr
    assert re.search(r"most in \S*/train-\d{6}\.tar \(1\), the last", done.stderr)
