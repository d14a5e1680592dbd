"""Norms of one step in one process, against fp64. On other layouts they are the same: tests/ranks/test_optim.py."""

import os
from pathlib import Path

import pytest
import torch

from dist_alexnet.engine import Engine
from dist_alexnet.norms import Norms
from dist_alexnet.optim.norm import BLOCK, sum_of_squares
from tests.ranks.any_layout import CLASSES, engine_of
from tests.ranks.harness import environment
from tests.ranks.pool import RankPool

CLIP_NORM = 0.05
PLAIN = {"columns": 1, "replicas": 1, "zero_stage": 0, "precision": "fp32", "optimizer": "sgd-2012"}


@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 17, 1 << 23])
def test_sum_of_squares(length: int) -> None:
    """A sum in fp32 is 5e-4 off at the last of these lengths."""
    values = torch.randn(length, generator=torch.Generator().manual_seed(length))
    assert sum_of_squares(values).item() == pytest.approx(values.double().square().sum().item(), rel=1e-6)


def test_of_an_engines_steps(tmp_path: Path) -> None:
    """Gradients before clipping, weights after the step, and what it changed; of a step that is not due nothing."""
    os.environ.update(environment(), LOCAL_RANK="0")  # DeepSpeed asks for it; on CPUs it means nothing
    with RankPool(1, tmp_path) as alone:
        alone.ask(check_steps_in_fp64)
        alone.ask(check_a_dropped_step)


def check_steps_in_fp64() -> None:
    engine = engine_of({**PLAIN, "clip_norm": CLIP_NORM})
    norms, named = Norms(engine), {one.tensor.name: one.parameter for one in engine.learned}
    for due in (True, False, True):
        compute_gradients(engine)
        health = engine.health()
        gradients = {name: one.grad.double() for name, one in named.items() if one.grad is not None}
        before = {name: one.detach().double() for name, one in named.items()}
        with norms.looking(due):
            engine.step(health)
        weights = {name: one.detach().double() for name, one in named.items()}
        ratios = {name: (after - before[name]).norm() / after.norm() for name, after in weights.items()}
        expected = {
            **norms_of("norm/gradient", gradients),
            **norms_of("norm/weight", weights),
            **{f"optim/update_ratio/{name}": ratio.item() for name, ratio in ratios.items()},
        }
        assert expected["norm/gradient"] > 2 * CLIP_NORM  # so it was clipped
        assert norms.values() == (pytest.approx(expected, rel=1e-5) if due else {})
        assert norms.values() == {}  # a line has them once


def check_a_dropped_step() -> None:
    engine = engine_of(PLAIN)
    norms = Norms(engine)
    compute_gradients(engine)
    health = engine.health()
    with norms.looking(due=True):
        engine.step(health, leave_out=True)
    assert set(norms.values()) == {"norm/weight", *(f"norm/weight/{one.tensor.name}" for one in engine.learned)}


def compute_gradients(engine: Engine) -> None:
    engine.set_rates(lambda layer, role, multiplier: 0.01 * multiplier)
    labels_B = torch.arange(24) % CLASSES
    loss_B, *_ = engine.forward(50 * torch.randn(24, 3, 64, 64), labels_B, torch.ones(24), torch.arange(24))
    engine.backward(loss_B.sum())


def norms_of(key: str, tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    total = torch.stack([values.norm() for values in tensors.values()]).norm().item()
    return {key: total, **{f"{key}/{name}": values.norm().item() for name, values in tensors.items()}}
