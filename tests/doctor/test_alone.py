"""The command itself: one process, exit codes, JSON, no secrets, and storage over S3. 10 to 20 s."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_alexnet.__main__ import run
from dist_alexnet.config import load_config
from dist_alexnet.doctor import folders, memory
from dist_alexnet.doctor.board import open_board
from dist_alexnet.doctor.site import Site
from dist_alexnet.environment import World
from dist_alexnet.job import make_job
from shards import storage
from tests.ranks.harness import ROOT, environment


def alone(config: Path, *overrides: str) -> Site:
    world = World(0, 1, 0, 1, "bare")
    return Site(world, "here", open_board(world), lambda: load_config(config, overrides))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_passes_with_a_line_a_check_and_leaves_nothing(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", str(config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16
    assert all(line.startswith("ok      ") for line in lines[:-1])
    assert lines[-1] == "ready to train"
    assert list(tmp_path.iterdir()) == []


def test_alone_it_looks_at_the_world_that_the_run_will_have(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(config), "parallel.columns=2", "--json", "-"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["checks"]}
    assert "as 2 ranks" in found["job"]["found"]
    assert run(["doctor", str(config), "--world-size", "3", "--json", "-"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["code"] == 2
    assert "expected a multiple of 3 data ranks" in next(one for one in told["checks"] if one["name"] == "job")["found"]
    assert "run folder" in told["left_out"]


def test_too_few_open_files_are_a_failed_check_and_not_a_crash(config: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", 'ulimit -n 64; exec "$@"', "bash", sys.executable, "-m", "dist_alexnet", "doctor", str(config)],
        env={**environment(), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "FAIL    open files: 64 for a process (about" in done.stdout
    assert "would not run well: open files" in done.stdout


def test_a_service_that_does_not_answer_is_a_warning_and_the_key_is_not_told(
    config: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert run(["doctor", str(config), "log.wandb.mode=online"]) == 0
    shown = capfd.readouterr()
    assert "warning wandb: online, but the service does not answer" in shown.out
    assert "kkkk" not in shown.out + shown.err
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", "/no/such/file")
    assert run(["doctor", str(config), "log.wandb.mode=online"]) == 0
    assert "warning wandb: online, but there is no key" in capfd.readouterr().out


def test_a_server_that_hangs_is_told_with_what_was_heard_of_it(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dist_alexnet.doctor import examine
    from dist_alexnet.doctor.data import shards

    storage_down = "https://127.0.0.1:9/set/train.index.json"
    checks = [examine.Check("shards", shards, limit_s=8)]
    lines: list[examine.Line] = []
    assert not examine.examine(alone(config, f"data.train={storage_down}"), checks, lines.append)
    (line,) = lines
    assert "no answer within 8 s; what was said last: https://127.0.0.1:9/set/train.index.json" in line.finding.found


def test_more_state_more_ranks_and_more_images_need_more_memory(config: Path) -> None:
    def needed(*overrides: str, ranks: int = 1) -> memory.Needed:
        return memory.needed_by(make_job(load_config(config, overrides), ranks))

    plain = needed()
    assert needed("optimizer.name=adamw", "optimizer.lr=0.001").model > plain.model
    assert needed("parallel.zero_stage=3", ranks=4).model < needed(ranks=4).model
    assert needed("parallel.micro_batch=4").activations == plain.activations // 2
    assert memory.saved_bytes(make_job(load_config(config), 1)) == plain.copy


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pytest.importorskip("s3fs")
    server_of = pytest.importorskip("moto.server").ThreadedMotoServer
    server = server_of(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    settings = dict.fromkeys(names, "test") | {"AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (settings | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.05,))
    import s3fs

    storage._client.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("checkpoints")
    yield "s3://checkpoints/runs"
    server.stop()
    storage._client.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_object_store_is_written_read_and_left_as_it_was(config: Path, bucket: str) -> None:
    found = folders.checkpoint_url(alone(config, f"checkpoint.url={bucket}"))
    assert found.level == "ok", found
    assert storage.names_in(bucket) == []
    assert folders.checkpoint_url(alone(config, "checkpoint.url=s3://no-such-bucket/runs")).level == "FAIL"
