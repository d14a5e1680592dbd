"""What a start takes from the checkpoint that it takes up, beside the tensors."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dist_alexnet import standing
from dist_alexnet.checkpoint.place import Place
from dist_alexnet.config import Config, Run


def test_the_id_of_w_and_b_goes_on_with_the_runs_own_checkpoints_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that begins with another run's checkpoint is another run there, too."""
    state = {key: {} for key in standing.OF_A_RUN} | {"samples": 0, "evaluation_pending": False, "wandb_id": "abc"}
    commit = SimpleNamespace(state=state, step=5, generation=2, layout={}, versions={})
    config = Config(run=Run(name="mine", dir=str(tmp_path)))
    nothing = SimpleNamespace(restore=lambda state: None, loading=nullcontext, fragments=list, skipped=[])
    kept: Any = SimpleNamespace(engine=nothing, meter=nothing, plateau=nothing, guard=nothing)
    monkeypatch.setattr(standing.store, "load", lambda *_: None)
    monkeypatch.setattr(standing, "check_identity", lambda *_: None)
    monkeypatch.setattr(standing, "_receipt", lambda *_: [])

    def taken_up(run: str) -> standing.Standing:
        folder = Place.at(str(tmp_path / run / "checkpoints" / "step-00000005" / "g0002"))
        found: Any = SimpleNamespace(folder=folder, commit=commit)
        job: Any = SimpleNamespace(identity={})
        return standing._loaded(found, [], config, job, kept)

    assert (taken_up("mine").wandb_id, taken_up("mine").stands_on) == ("abc", 2)
    assert (taken_up("other").wandb_id, taken_up("other").stands_on) == (None, None)
    del state["wandb_id"]  # of an older version
    assert taken_up("mine").wandb_id is None
