"""Two runs beside each other, from what they wrote down alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from dist_alexnet.__main__ import run as command
from dist_alexnet.compare import compare
from dist_alexnet.config import config_from, to_yaml
from dist_alexnet.errors import RunFolderError
from dist_alexnet.track.jsonl import JsonLines

STEPS, BATCH = 6, 4


def written(folder: Path, *, every_steps: int = 1, columns: int = 2, killed_at: int | None = None) -> Path:
    """A run of STEPS steps on `columns` ranks; a first start may have been killed after a step that was not saved."""
    values = {
        "parallel": {"columns": columns},
        "log": {"every_steps": every_steps, "sample_keys": True, "digest_every_steps": 2},
    }
    spans = [(0, STEPS)] if killed_at is None else [(0, killed_at), (killed_at - 2, STEPS)]
    for generation, (first, last) in enumerate(spans, start=1):
        (folder / "generations").mkdir(parents=True, exist_ok=True)
        (folder / "generations" / f"g{generation:04d}.yaml").write_text(to_yaml(config_from(values, "the test")))
        stands_on = generation - 1 if first else None
        layout = {"data": 1, "replicas": 1, "columns": columns, "zero_stage": 0}
        add(folder / "attempts.jsonl", generation, event="start", step=first, layout=layout, **{"from": stands_on})
        for step in range(first + 1, last + 1):
            dead = generation < len(spans) and step > spans[1][0]  # done again by the next start, which counts
            add(folder / "metrics.jsonl", generation, step=step, **{"train/loss": -1.0 if dead else 1 / step})
            positions = list(range((step - 1) * BATCH, step * BATCH))
            for rank in range(columns):
                keys = [f"key-{position % 9}" for position in positions]
                add(folder / "keys" / f"rank-{rank:05d}.jsonl", generation, step=step, positions=positions, keys=keys)
            if step % 2 == 0:
                digests = {"conv1.weight/weight": f"{step:016x}", "conv1.weight/state": "0" * 16}
                add(folder / "digests.jsonl", generation, step=step, digests=digests)
    return folder


def add(path: Path, generation: int, **record: Any) -> None:
    lines = JsonLines(path, generation)
    lines.append(record)
    lines.close()


def edit(path: Path, step: int, change: dict[str, Any]) -> None:
    """Change the record of a step."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**line, **(change if line["step"] == step else {})}) + "\n" for line in lines))


def test_a_killed_run_on_other_ranks_equals_the_unbroken_one(tmp_path: Path) -> None:
    """Lines that a later start superseded do not count, and columns see the same pictures."""
    found = compare(written(tmp_path / "a"), written(tmp_path / "b", columns=1, killed_at=4))
    assert found.equal
    assert found.steps == {"keys": STEPS, "train/loss": STEPS, "val/loss": 0, "digest": STEPS // 2}
    assert found.largest == {"train/loss": 0.0}
    assert found.settings == {"config.parallel.columns": (2, 1), "layout.columns": (2, 1)}


def test_the_first_step_at_which_each_thing_differs(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a"), written(tmp_path / "b")
    edit(b / "metrics.jsonl", 5, {"train/loss": 0.3})
    edit(b / "digests.jsonl", 4, {"digests": {"conv1.weight/weight": "f" * 16, "conv1.weight/state": "0" * 16}})
    found = compare(a, b)
    assert not found.equal
    assert {name: first.step for name, first in found.first.items()} == {"train/loss": 5, "digest": 4}
    assert found.largest["train/loss"] == pytest.approx(1 / 3)
    # of a digest only the tensors that differ are named
    assert (found.first["digest"].a, found.first["digest"].b) == (
        {"conv1.weight/weight": f"{4:016x}"},
        {"conv1.weight/weight": "f" * 16},
    )


@pytest.mark.parametrize(
    "keys", [["key-0", "key-1", "key-2", "key-8"], ["key-1", "key-0", "key-2", "key-3"], ["key-0", "key-1", "key-2"]]
)
def test_another_sample_another_place_or_one_less(tmp_path: Path, keys: list[str]) -> None:
    a, b = written(tmp_path / "a"), written(tmp_path / "b")
    edit(b / "keys" / "rank-00000.jsonl", 1, {"keys": keys, "positions": list(range(len(keys)))})
    assert compare(a, b).first["keys"].step == 1


def test_a_loss_that_is_not_finite_is_equal_to_itself(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a"), written(tmp_path / "b")
    for folder in (a, b):
        for step, loss in ((4, "nan"), (6, "inf")):
            add(folder / "metrics.jsonl", 1, step=step, **{"val/loss": loss})
    found = compare(a, b)
    assert found.equal
    assert found.largest["val/loss"] == 0.0
    edit(b / "metrics.jsonl", 6, {"val/loss": 0.5})
    found = compare(a, b)
    assert found.first["val/loss"].step == 6
    assert found.largest["val/loss"] == float("inf")


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a"), written(tmp_path / "b", every_steps=2)
    for path in (b / "keys").iterdir():
        path.unlink()
    (b / "digests.jsonl").unlink()
    with pytest.raises(RunFolderError, match="no step in common"):
        compare(a, b)
    add(a / "metrics.jsonl", 1, step=6, **{"val/loss": 0.5})
    add(b / "metrics.jsonl", 1, step=6, **{"val/loss": 0.5})
    found = compare(a, b)
    assert found.equal
    assert set(found.not_compared) == {"keys", "train/loss", "digest"}


def test_the_command_and_its_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = written(tmp_path / "a"), written(tmp_path / "b")
    assert command(["compare", str(a), str(b)]) == 0
    assert "equal at every step that both have" in capsys.readouterr().out
    edit(b / "metrics.jsonl", 3, {"train/loss": 9.0})
    assert command(["compare", str(a), str(b), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["first"] == {"train/loss": {"step": 3, "a": 1 / 3, "b": 9.0}}
    assert command(["compare", str(a), str(b)]) == 1
    assert "they part at step 3" in capsys.readouterr().out
    assert command(["compare", str(a), str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path} holds no start of a run")
