"""The verdict sees what a drill is there to find: a sample lost, repeated or wrong, a loss, one bit of one weight."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_alexnet.config import config_from, to_yaml
from dist_alexnet.drill.report import Report, redone
from dist_alexnet.drill.scene import Struck
from dist_alexnet.drill.verdict import Verdict, judge
from dist_alexnet.engine import Fragment
from dist_alexnet.job import Job, make_job
from dist_alexnet.parallel.mesh import Mesh
from dist_alexnet.track.jsonl import JsonLines
from shards.order import Order
from shards.reader import ShardReader
from tests.checkpoint.states import fragments, save
from tests.ranks.pictures import CLASSES, write_shards

STEPS, BATCH, COLUMNS = 8, 24, 2


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """8 steps on two columns."""
    folder = tmp_path_factory.mktemp("verdict")
    write_shards(folder)
    values = {
        "run": {"steps": STEPS, "seed": 3},
        "data": {"train": str(folder / "train.index.json"), "batch_size": BATCH, "image_size": 64, "resize": 72},
        "network": {"num_classes": CLASSES, "width": 0.125},
        "parallel": {"columns": COLUMNS},
    }
    return make_job(config_from(values, "the test"), COLUMNS)


def written(run: Path, job: Job, parts: list[Fragment] | None = None, killed_at: int | None = None) -> Path:
    """What a run on two columns leaves, killed once after `killed_at` steps and taken up one step before that."""
    order = Order(job.train.samples_per_shard, 3, job.config.data.lane_count, job.config.data.window_shards)
    reader = ShardReader(job.train)
    spans = [(0, STEPS)] if killed_at is None else [(0, killed_at), (killed_at - 1, STEPS)]
    for generation, (first, last) in enumerate(spans, start=1):
        (run / "generations").mkdir(parents=True, exist_ok=True)
        (run / "generations" / f"g{generation:04d}.yaml").write_text(to_yaml(job.config))
        stands_on = {"from": generation - 1 if first else None}
        add(run / "attempts.jsonl", generation, event="start", step=first, layout={"columns": COLUMNS}, **stands_on)
        for step in range(first + 1, last + 1):
            positions = list(range((step - 1) * BATCH, step * BATCH))
            keys = [reader.key(int(sample)) for sample in order.samples(torch.tensor(positions).numpy())]
            add(run / "metrics.jsonl", generation, step=step, **{"train/loss": 1 / step})
            for rank in range(COLUMNS):
                add(run / "keys" / f"rank-{rank:05d}.jsonl", generation, step=step, positions=positions, keys=keys)
        for step in ([first] if first else []) + list(range(first + 1, last + 1)):
            add(run / "digests.jsonl", generation, step=step, digests={"a/weight": f"{step:016x}"})
    save(run, STEPS, len(spans), parts)
    return run


def add(path: Path, generation: int, **record: Any) -> None:
    lines = JsonLines(path, generation)
    lines.append(record)
    lines.close()


def edited(path: Path, change: Callable[[dict[str, Any]], None], step: int = 3) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["step"] == step:
            change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def found(verdict: Verdict) -> tuple[int, int, int, bool, bool, bool]:
    return (
        verdict.lost, verdict.repeated, verdict.wrong, verdict.losses_equal, verdict.weights_equal, verdict.held
    )  # fmt: skip


def test_a_killed_run_that_lost_nothing(alone: Mesh, job: Job, tmp_path: Path) -> None:
    run, whole = written(tmp_path / "run", job, killed_at=5), written(tmp_path / "whole", job)
    verdict = judge(run, whole, job, same_layout=True)
    assert found(verdict) == (0, 0, 0, True, True, True)
    assert (verdict.samples, verdict.starts, verdict.taken_up, verdict.changed) == (STEPS * BATCH, 2, 1, 0)
    rank, torn = Struck("rank", "run", 1, "", 1.0), Struck("torn", "run", 2, "", 2.0, damaged=True)
    assert redone(tmp_path, [rank]) == [1]  # step 5, which start 1 had done and start 2 did again
    assert redone(tmp_path, [rank, torn]) == [None, 1]  # not twice
    assert redone(tmp_path, [Struck("rank", "run", 2, "", 1.0)]) == [None]


def lose(line: dict[str, Any]) -> None:
    line["positions"], line["keys"] = line["positions"][1:], line["keys"][1:]


def repeat(line: dict[str, Any]) -> None:
    line["positions"], line["keys"] = [*line["positions"], 5], [*line["keys"], line["keys"][0]]


def swap(line: dict[str, Any]) -> None:
    line["keys"][0], line["keys"][1] = line["keys"][1], line["keys"][0]


@pytest.mark.parametrize(
    ("change", "ranks", "expected"),
    [(lose, (0, 1), (1, 0, 0)), (repeat, (0, 1), (0, 1, 1)), (swap, (0, 1), (0, 0, 2)), (swap, (1,), (0, 0, 2))],
    ids=["lost", "repeated", "wrong", "wrong-in-the-other-column"],
)
def test_samples(
    alone: Mesh, job: Job, tmp_path: Path, change: Any, ranks: tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    run, whole = written(tmp_path / "run", job), written(tmp_path / "whole", job)
    for rank in ranks:
        edited(run / "keys" / f"rank-{rank:05d}.jsonl", change)
    for same_layout in (True, False):
        verdict = judge(run, whole, job, same_layout)
        assert (verdict.lost, verdict.repeated, verdict.wrong) == expected
        assert not verdict.held


def test_losses_and_single_bits(alone: Mesh, job: Job, tmp_path: Path) -> None:
    whole = written(tmp_path / "whole", job)
    other = written(tmp_path / "other", job)
    edited(other / "metrics.jsonl", lambda line: line.update({"train/loss": 0.5}), step=7)
    assert found(judge(other, whole, job, same_layout=True)) == (0, 0, 0, False, True, False)
    parts = fragments(STEPS)
    parts[0].values.view(torch.int32)[17] ^= 1
    bit = written(tmp_path / "bit", job, parts)
    assert found(judge(bit, whole, job, same_layout=True)) == (0, 0, 0, True, False, False)
    moved = written(tmp_path / "moved", job, parts, killed_at=5)
    assert found(judge(moved, whole, job, same_layout=False)) == (
        0,
        0,
        0,
        True,
        False,
        True,
    )  # rounding is allowed there


def test_a_start_that_took_up_something_else_than_was_saved(alone: Mesh, job: Job, tmp_path: Path) -> None:
    whole, run = written(tmp_path / "whole", job), written(tmp_path / "run", job, killed_at=5)
    lines = [json.loads(line) for line in (run / "digests.jsonl").read_text().splitlines()]
    for line in lines:
        if (line["generation"], line["step"]) == (2, 4):
            line["digests"] = {"a/weight": "other"}
    (run / "digests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for same_layout in (True, False):
        verdict = judge(run, whole, job, same_layout)
        assert (verdict.taken_up, verdict.changed, verdict.held) == (1, 1, False)
    (run / "digests.jsonl").unlink()
    assert not judge(run, whole, job, same_layout=False).held  # nothing was seen of it


def test_trouble_is_no_success(alone: Mesh, job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = written(tmp_path / "run", job)
    good = judge(run, run, job, same_layout=True)
    fine = Struck("rank", "run", 1, "SIGKILL of rank 0", 1.5)
    hung = Struck("stop", "run", 1, "SIGTERM to rank 1", None, trouble="2 processes were still there")
    assert Report(1, [fine], [3], [good], 9.0).held
    report = Report(2, [fine, hung], [3, None], [good], 9.0)
    assert not report.held
    report.show()
    out = capsys.readouterr().out
    assert "2 processes were still there" in out
    assert "NOT kept" in out
    assert report.as_dict()["faults"]["rank"]["detected_s"] == {"median": 1.5, "max": 1.5}
    assert not Report(3, [fine], [3], [good], 9.0).whole
    stopped = Struck("stop", "run", 1, "SIGTERM to rank 1", 1.0)
    assert Report(1, [stopped], [0], [good], 9.0).held
    assert not Report(1, [stopped], [2], [good], 9.0).held  # it was asked to stop and did not save where it stood
