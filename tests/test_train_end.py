"""What is written down when a start ends, and when."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dist_alexnet.config import Config, Run
from dist_alexnet.run_folder import Attempt
from dist_alexnet.standing import Standing
from dist_alexnet.track.jsonl import read_lines
from dist_alexnet.train import _Run


@pytest.mark.parametrize("code", [0, 1, 75])
def test_how_a_start_ended_is_written_down_before_w_and_b_is_waited_for(tmp_path: Path, code: int) -> None:
    """Whoever launched it kills it after some seconds, however long W&B takes."""
    run = _Run(Config(run=Run(name="run", dir=str(tmp_path))), torch.device("cpu"), "auto")
    run.folder.mkdir()
    found = []

    def close(exit_code: int) -> None:
        found.append((exit_code, json.loads((run.folder / "outcome.json").read_text())["code"]))
        found.append(read_lines(run.folder / "attempts.jsonl")[-1]["event"])

    run.watchdog, run.standing = SimpleNamespace(close=lambda: None), Standing(step=5)  # type: ignore[assignment]
    run.saver = SimpleNamespace(committed=list)  # type: ignore[assignment]
    run.tracker = SimpleNamespace(close=close, alert=lambda *_: None)  # type: ignore[assignment]
    run.attempt = Attempt(run.folder, 1, 0, None, {}, ["here"])
    run._end("why", code)
    assert found == [(code, code), "end"]
