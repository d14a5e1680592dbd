"""A run whose checkpoints lie in an object store goes on from them when its machine, and its run folder, are gone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_alexnet.__main__ import run as run_command
from dist_alexnet.track.jsonl import read_lines
from tests.ranks.harness import Case, difference, run_cases
from tests.servers.s3 import MISSING, WHY, Store, forget_clients

pytestmark = pytest.mark.skipif(bool(MISSING), reason=WHY)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import s3fs

    server = Store()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    s3fs.S3FileSystem().mkdir("checkpoints-of-runs")
    yield "s3://checkpoints-of-runs"
    forget_clients()
    server.stop()


def test_another_machine_goes_on_from_the_object_store(
    config: Path, runs: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url, columns, steps = f"{bucket}/far", "parallel.columns=2", "checkpoint.every_steps=5"
    here = (f"checkpoint.url={url}", "run.name=far", steps)
    run_cases(2, config, [Case("far", (*here, columns, "run.steps=10"))])
    assert (runs / "far" / "checkpoints.url").read_text() == f"{url}\n"
    assert not (runs / "far" / "checkpoints").exists()
    shutil.rmtree(runs / "far")
    run_cases(1, config, [Case("far", (*here, "run.steps=15")), Case("near", ("run.steps=15",))])
    (start,) = [line for line in read_lines(runs / "far" / "attempts.jsonl") if line["event"] == "start"]
    assert (start["generation"], start["step"], start["from"]) == (2, 10, 1)
    assert difference(url, runs / "near") < 1e-4
    assert run_command(["checkpoint", "verify", str(runs / "far")]) == 0  # the folder knows where they are
    assert capsys.readouterr().out.splitlines() == [
        f"good     {url}/step-000000{step}" for step in ("15/g0002", "10/g0001", "05/g0001")
    ]
    words = ["evaluate", url, "--shards", str(config.parent / "shards" / "val.index.json")]
    assert run_command(words) == 0
    assert "top1" in capsys.readouterr().out
