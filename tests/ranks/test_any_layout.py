"""What any layout saved, any other loads bit for bit: weights and the rule's state, at every ZeRO stage."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks.any_layout import known, loaded, saved
from tests.ranks.harness import environment, tensors
from tests.ranks.pool import RankPool

LAYOUTS = {  # name: (ranks, columns, replicas)
    "one": (1, 1, 1),
    "data-2": (2, 1, 1),
    "columns-2": (2, 2, 1),
    "replicas-2": (2, 1, 2),
    "data-3": (3, 1, 1),
    "data-4": (4, 1, 1),
    "replicas-4": (4, 1, 4),
    "grid": (4, 2, 2),
    "data-columns": (4, 2, 1),
    "data-replicas": (4, 1, 2),
}
RULES = ("sgd-2012", "lars", "adamw")
Cases = list[dict[str, Any]]
Ask = Callable[..., list[Any]]


def case(layout: str, stage: int, precision: str, rule: str) -> dict[str, Any]:
    ranks, columns, replicas = LAYOUTS[layout]
    return {
        "name": f"{layout}-{stage}-{precision}-{rule}",
        "ranks": ranks,
        "columns": columns,
        "replicas": replicas,
        "zero_stage": stage,
        "precision": precision,
        "optimizer": rule,
    }


def every_case() -> Cases:
    """DeepSpeed's stage 3 and LARS do not go together (config.py)."""
    chosen = itertools.product(LAYOUTS, range(4), ("fp32", "bf16"), RULES)
    return [case(*one) for one in chosen if one[1::2] != (3, "lars")]


SOME = [  # each layout, stage, precision and rule, on both sides
    case("one", 3, "fp32", "sgd-2012"),
    case("columns-2", 1, "fp32", "sgd-2012"),
    case("replicas-2", 0, "bf16", "sgd-2012"),
    case("data-3", 2, "fp32", "sgd-2012"),
    case("grid", 3, "bf16", "sgd-2012"),
    case("data-columns", 2, "fp32", "sgd-2012"),
    case("replicas-4", 1, "fp32", "sgd-2012"),
    case("data-2", 1, "bf16", "lars"),
    case("data-3", 0, "fp32", "lars"),
    case("grid", 2, "fp32", "lars"),
    case("data-2", 3, "fp32", "adamw"),
    case("data-4", 2, "bf16", "adamw"),
    case("data-replicas", 3, "fp32", "adamw"),
]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Put a question to a world of so many ranks."""
    before = dict(os.environ)
    os.environ.update(environment(), LOCAL_RANK="0")  # DeepSpeed asks for it; on CPUs it means nothing
    with ExitStack() as stack:
        pools: dict[int, RankPool] = {}

        def put(ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
            if ranks not in pools:
                pools[ranks] = stack.enter_context(RankPool(ranks, tmp_path_factory.mktemp("store")))
            return pools[ranks].ask(function, *arguments, timeout_s=1800)

        yield put
    os.environ.clear()
    os.environ.update(before)


def check(ask: Ask, folder: Path, cases: Cases) -> None:
    """Save all of `cases`, and load on each what all of its rule have saved."""
    for one in cases:
        ask(one["ranks"], saved, one, str(folder / one["name"]))
        for key, values in tensors(folder / one["name"]).items():
            assert torch.equal(values, known(*key.rsplit("/", 1), values.numel())), (one["name"], key)
    for one in cases:
        others = [str(folder / other["name"]) for other in cases if other["optimizer"] == one["optimizer"]]
        for rank, wrong in enumerate(ask(one["ranks"], loaded, one, others)):
            assert wrong == [], (one["name"], rank)


def test_any_layout_loads_what_another_saved(ask: Ask, tmp_path: Path) -> None:
    check(ask, tmp_path, SOME)


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES)
def test_every_layout_loads_what_every_other_saved(ask: Ask, tmp_path: Path, rule: str) -> None:
    check(ask, tmp_path, [one for one in every_case() if one["optimizer"] == rule])
