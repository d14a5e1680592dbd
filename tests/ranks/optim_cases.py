"""Cases that look into the engine: `python -m tests.ranks.optim_cases CONFIG LISTED`, as tests/ranks/cases.py."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from dist_alexnet.__main__ import leave
from dist_alexnet.config import Config
from dist_alexnet.train import _Run, train
from dist_alexnet.zero import Zero
from tests.ranks import cases


def counted(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Train, and write down the elements of each all-reduce over the replicas of this rank's column."""
    run = _Run(config, torch.device("cpu"), "never")
    seen: list[tuple[Any, int]] = []
    all_reduce = dist.all_reduce

    def noted(tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False) -> Any:
        seen.append((group, tensor.numel()))
        return all_reduce(tensor, op, group, async_op)

    with patch.object(dist, "all_reduce", noted):
        run.story()
    elements = [count for group, count in seen if group is run.mesh.replica]
    held = sum(one.parameter.numel() for one in run.engine.learned if one.tensor.cut == "column")
    to = Path(config.run.dir) / f"{name}-{dist.get_rank()}.json"
    to.write_text(json.dumps({"elements": elements, "held": held}))


def overflowing(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Train, but in some steps (counted from 1 in this start) one element of one rank's gradient is not finite."""
    gradients, step = Zero.gradients, 0

    def spoilt(zero: Zero) -> Iterator[tuple[dict[str, Any], Tensor]]:
        nonlocal step
        step += 1
        for number, (group, gradient) in enumerate(gradients(zero)):
            if number == 0 and step in extra["steps"] and dist.get_rank() == extra["rank"]:
                gradient.view(-1)[0] = torch.inf
            yield group, gradient

    with patch.object(Zero, "gradients", spoilt):
        train(config)


if __name__ == "__main__":
    cases.KINDS.update(counted=counted, overflowing=overflowing)
    cases.main(*sys.argv[1:])
    leave(0)
