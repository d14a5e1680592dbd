"""Runs in which a step goes wrong: `python -m tests.ranks.divergence_cases CONFIG LISTED`, as tests/ranks/cases.py."""

import json
import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from dist_alexnet.__main__ import leave
from dist_alexnet.config import Config
from dist_alexnet.engine import Engine
from dist_alexnet.guard.divergence import Fault, Skipped
from dist_alexnet.train import _Run
from shards.errors import DistAlexnetError
from tests.ranks import cases


class _Left(DistAlexnetError):
    """This start ends here, as if it had been killed."""


class _Spoilt(_Run):
    """A run in which the pictures at some positions do harm, on the ranks that see them.

    gradient: the layer in whose weight's gradient they leave an infinity, in column 0
    times, pixels: what the loss of their micro-batch, and their pixels, are multiplied by
    scale: fp16's, to begin with
    skipped: a range that is left out from the start
    left: [generation, step] after which this start ends
    """

    def __init__(self, config: Config, extra: dict[str, Any]) -> None:
        super().__init__(config, torch.device("cpu"), extra.get("resume", "auto"))
        self.extra, self.sees_one = extra, False
        self.workers_left: int | None = None

    def prepare(self) -> None:
        super().prepare()
        if "skipped" in self.extra:
            self.guard.skipped, self.guard.rollbacks = [Skipped(*self.extra["skipped"])], 1
        if self.engine.loss_scale is not None:
            self.engine.loss_scale.scale = self.extra.get("scale", self.engine.loss_scale.scale)
        if "gradient" in self.extra and self.mesh.place.column == 0:
            (tensor,) = [one for one in self.job.network.tensors if one.name == f"{self.extra['gradient']}.weight"]
            self.module.parameter_of(tensor).register_hook(self.spoil)  # type: ignore[no-untyped-call]

    def spoil(self, gradient: Tensor) -> Tensor:
        if self.sees_one:
            gradient = gradient.clone()
            gradient.view(-1)[1] = torch.inf
        return gradient

    @contextmanager
    def spoiling(self) -> Iterator[None]:
        forward, backward = Engine.forward, Engine.backward
        bad = torch.tensor(self.extra.get("positions", []), dtype=torch.int64)

        def spoilt(engine: Engine, *inputs: Tensor, **settings: Any) -> Any:
            x, label, weight, position = inputs
            self.sees_one = engine._engine.training and bool(torch.isin(position, bad).any())
            x = x * self.extra.get("pixels", 1) if self.sees_one else x
            return forward(engine, x, label, weight, position, **settings)

        def louder(engine: Engine, loss: Tensor) -> None:
            backward(engine, loss * self.extra.get("times", 1) if self.sees_one else loss)

        with patch.object(Engine, "forward", spoilt), patch.object(Engine, "backward", louder):
            yield

    def _roll_back(self, fault: Fault) -> int:
        before = multiprocessing.active_children()
        first = super()._roll_back(fault)
        self.workers_left = sum(process.is_alive() for process in before)
        return first

    def _after(self, step: int) -> None:
        super()._after(step)
        if [self.generation, step] == self.extra.get("left"):
            self.saver.finish()
            raise _Left("left")


def spoilt_train(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Train with bad pictures, and write down the error of each rank."""
    run, error = _Spoilt(config, extra), None
    with run.spoiling():
        try:
            run.story()
        except DistAlexnetError as caught:
            error = caught
    folder = Path(config.run.dir).parent / "divergence"
    folder.mkdir(exist_ok=True)
    told = {
        "error": type(error).__name__ if error else None,
        "said": str(error),
        "workers_left": run.workers_left,
        "updates": run.engine.state()["updates"],
        "loss_scale": run.engine.state()["loss_scale"],
    }
    (folder / f"{name}-{dist.get_rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    cases.KINDS.update(spoilt_train=spoilt_train)
    cases.main(*sys.argv[1:])
    leave(0)
