"""What ranks do for tests/ranks/test_finetune.py beside training. Run by tests/ranks/harness.py."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_alexnet.__main__ import leave
from dist_alexnet.checkpoint import store
from dist_alexnet.config import Config
from dist_alexnet.guard.divergence import Fault
from dist_alexnet.job import make_job
from dist_alexnet.standing import roll_back
from dist_alexnet.train import _Run
from tests.ranks import cases


def back_to_the_start(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Begin, spoil every value, roll back where there is no checkpoint, and save what is there then."""
    run = _Run(config, torch.device("cpu"), "auto")
    run.job = make_job(config, dist.get_world_size())
    run.prepare()
    assert run.take_up() == 0
    with run.engine.loading():
        for part in run.engine.fragments():
            part.values.fill_(7.0)
    standing = roll_back(config, run.job, "auto", run.kept, Fault(3, "a fault", "rollback"))
    assert standing.step == 0
    assert any(line.startswith("begins with") for line in standing.receipt)
    to, parts = Path(config.run.dir) / name, run.engine.fragments_to_save()
    store.save(to, parts, step=0, generation=1, layout={}, versions={}, state={})


def moved(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Give another run's folder the name of this case."""
    folder = Path(config.run.dir)
    if dist.get_rank() == 0:
        (folder / extra["run"]).rename(folder / name)


if __name__ == "__main__":
    cases.KINDS.update(back_to_the_start=back_to_the_start, moved=moved)
    cases.main(*sys.argv[1:])
    leave(0)
