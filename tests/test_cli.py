"""The short door: quick to open, one line when something is wrong, the right exit code."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dist_alexnet.__main__ import run
from dist_alexnet.crash import traceback_in
from shards.errors import InputError, StorageFault


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(f"run: {{dir: {tmp_path}/runs, name: trial}}\ndata: {{batch_size: 64}}\n")
    return path


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Callable[..., Any]) -> None:
    """Put a module in place of one that would need torch."""
    module = ModuleType(name)
    module.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, name, module)


def never(*_: object, **__: object) -> None:
    raise AssertionError("must not be called")


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from dist_alexnet.__main__ import run\n"
        "assert run(['--help']) == 0\n"
        "heavy = {'torch', 'pydantic', 'omegaconf', 'numpy', 'wandb', 'deepspeed', 'webdataset', 'fsspec', 'PIL'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    times_s = []
    for _ in range(3):
        begin_s = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        times_s.append(time.monotonic() - begin_s)
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert "train" in done.stdout
    assert min(times_s) < 0.5


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    assert "Usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["train"], "Missing argument"),
        (["train", "x.yaml", "--colour"], "No such option"),
        (["trian"], "No such command"),
        (["shards"], "Missing command"),
        (["shards", "build", "bundled", "digits", "--to", "x", "--samples-per-shard", "0"], "samples-per-shard"),
        (["shards", "build", "bundled", "letters", "--to", "x"], "expected digits"),
        (["config", "show", "no-such.yaml"], "no-such.yaml"),
        (["train", "no-such.yaml"], "no-such.yaml"),
        (["shards", "info", "no-such/train.index.json"], "there is no index"),
        (["shards", "verify", "no-such/train.index.json"], "there is no index"),
        (["shards", "index", "a/t-0.tar::b/t-1.tar"], "one folder"),
        (["evaluate", "x", "--shards", "y", "--json", "no-such-folder/x.json"], "folder that exists"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(args) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert shown.out == ""


def test_only_rank_0_tells_the_users_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(key, value)
    assert run(["config", "show", "no-such.yaml"]) == 2
    assert run(["train", "x.yaml", "--colour"]) == 2
    assert capsys.readouterr().err == ""


def test_train_gets_config_overrides_and_resume(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def train_together(load: Callable[[], Any], resume: str) -> None:
        calls.append((load().data.batch_size, load().run.seed, resume))

    stand_in(monkeypatch, "dist_alexnet.train", train_together=train_together)
    assert run(["train", str(config)]) == 0
    assert run(["train", str(config), "data.batch_size=32", "run.seed=7", "--resume", "never"]) == 0
    assert calls == [(64, 0, "auto"), (32, 7, "never")]


def test_the_deepspeed_launchers_argument_is_taken(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "dist_alexnet.train", train_together=lambda load, resume: None)
    assert run(["--local_rank=1", "train", str(config)]) == 0
    assert run(["train", "--local_rank=1", str(config), "run.seed=7"]) == 0


def test_dry_run_describes_and_does_not_train(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, "dist_alexnet.train", train_together=never)
    stand_in(monkeypatch, "dist_alexnet.job", describe=lambda config: f"batch {config.data.batch_size}")
    assert run(["train", str(config), "--dry-run"]) == 0
    assert capsys.readouterr().out == "batch 64\n"


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def train_together(load: Callable[[], Any], resume: str) -> None:
        with traceback_in(load().run_folder):
            raise error

    stand_in(monkeypatch, "dist_alexnet.train", train_together=train_together)


def test_a_storage_fault_is_one_line_and_code_1(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, StorageFault("shard a.tar is short"))
    (tmp_path / "runs" / "trial").mkdir(parents=True)
    assert run(["train", str(config)]) == 1
    assert capsys.readouterr().err == "error: shard a.tar is short\n"
    assert "StorageFault" in (tmp_path / "runs" / "trial" / "logs" / "rank-00000.log").read_text()


def test_a_surprise_leaves_its_traceback_in_the_run_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, RuntimeError("two\nlines"))
    folder = tmp_path / "runs" / "trial"
    folder.mkdir(parents=True)
    for key, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(key, value)
    assert run(["train", str(config)]) == 1
    log = folder / "logs" / "rank-00003.log"
    assert capsys.readouterr().err == f"error: rank 3: RuntimeError: two lines; the traceback is in {log}\n"
    assert "Traceback (most recent call last)" in log.read_text()


def test_a_surprise_without_a_run_folder_is_told_whole(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, RuntimeError("early"))
    assert run(["train", str(config)]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_users_mistake_writes_nothing_into_the_run_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, InputError("the run folder holds another run"))
    folder = tmp_path / "runs" / "trial"
    folder.mkdir(parents=True)
    assert run(["train", str(config)]) == 2
    assert list(folder.iterdir()) == []


def test_an_exit_passes(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, SystemExit(75))
    with pytest.raises(SystemExit) as exit_:
        run(["train", str(config)])
    assert exit_.value.code == 75


def test_evaluate_prints_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"loss": 0.25, "top1": 0.96, "images": 1000}
    asked: list[tuple[Any, ...]] = []

    def judge(*given: Any) -> None:
        *rest, told = given
        asked.append(tuple(rest))
        told(SimpleNamespace(as_dict=lambda: values))

    stand_in(monkeypatch, "dist_alexnet.judging.judge", judge=judge, Judgement=SimpleNamespace)
    stand_in(monkeypatch, "dist_alexnet.judging.show", lines=lambda result: ["loss 0.2500"], show_classes=never)
    out = tmp_path / "result.json"
    command = ["evaluate", "runs/x", "said.npz", "--shards", "s3://b/val.index.json", "--json", str(out)]
    assert run([*command, "--weights", "1,0.5", "--views", "10"]) == 0
    assert asked == [(["runs/x", "said.npz"], "s3://b/val.index.json", 10, [1.0, 0.5], None, None)]
    assert capsys.readouterr().out == "loss 0.2500\n"
    assert json.loads(out.read_text()) == values
    assert list(tmp_path.iterdir()) == [out]


def test_config_show_is_two_yaml_documents(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yaml = pytest.importorskip("yaml")
    assert run(["config", "show", str(config), "run.seed=3", "--world-size", "2"]) == 0
    resolved, deepspeed = yaml.safe_load_all(capsys.readouterr().out)
    assert resolved["run"]["seed"] == 3
    assert resolved["data"]["batch_size"] == 64
    assert deepspeed["train_batch_size"] == 64
    assert deepspeed["train_micro_batch_size_per_gpu"] == 32
    assert "gradient_clipping" in deepspeed


def test_config_show_without_a_world_takes_one_model_group(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A config of a layout that needs two ranks is shown, also where nobody has two."""
    yaml = pytest.importorskip("yaml")
    assert run(["config", "show", str(config), "parallel.columns=2"]) == 0
    _, deepspeed = yaml.safe_load_all(capsys.readouterr().out)
    assert deepspeed["train_micro_batch_size_per_gpu"] == deepspeed["train_batch_size"] == 64
    assert run(["config", "show", str(config), "parallel.columns=2", "--world-size", "1"]) == 2


def test_shards_build_folder_then_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for name, value in {"b": 10, "a": 200}.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (value, number, 0)).save(tmp_path / "pictures" / name / f"{number}.jpg")
    to = tmp_path / "set"
    built = ["shards", "build", "folder", str(tmp_path / "pictures"), "--to", str(to), "--samples-per-shard", "4"]
    assert run(built) == 0
    said = f"train: samples 6, classes 2, shards 2, index {to}/train.index.json\n"
    assert capsys.readouterr().out == said
    for file in to.glob("train.index.*"):
        file.unlink()
    assert run(["shards", "index", f"{to}/train-{{000000..000001}}.tar"]) == 0
    assert capsys.readouterr().out == said
    assert json.loads((to / "train.index.json").read_text())["totals"]["samples"] == 6


def test_shards_info_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for name, (value, count) in {"b": (10, 5), "a": (200, 2)}.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (value, 2 * number, 0)).save(tmp_path / "pictures" / name / f"{number}.png")
    to = tmp_path / "set"
    assert run(["shards", "build", "folder", str(tmp_path / "pictures"), "--to", str(to)]) == 0
    before = sorted(to.iterdir())
    capsys.readouterr()
    assert run(["shards", "info", f"{to}/train.index.json"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["samples"] == "7"
    assert said["per"] == "class   min 2, median 3.5, max 5"
    assert said["bytes"] == str((to / "train-000000.tar").stat().st_size)
    assert sorted(to.iterdir()) == before
    command = ["shards", "info", f"{to}/train.index.json", "--statistics", "--resize", "8", "--workers", "1"]
    assert run(command) == 0
    out = capsys.readouterr().out
    mean = next(line for line in out.splitlines() if line.startswith("mean "))
    assert [float(word) for word in mean.split("B ")[1].split(", ")] == pytest.approx([450 / 7, 22 / 7, 0], abs=1.5)
    assert out.splitlines()[-1] == f"statistics  {to}/train.statistics.json"
    assert json.loads((to / "train.statistics.json").read_text())["resize"] == 8
    assert run([*command, "--to", str(tmp_path / "elsewhere")]) == 0
    for name in ("train.statistics.json", "train.mean.npy"):
        assert (tmp_path / "elsewhere" / name).read_bytes() == (to / name).read_bytes()
