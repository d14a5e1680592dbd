"""Both presets in float64 on real ranks that each hold only their part: the same function, the same gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dist_alexnet.config import load_config
from dist_alexnet.job import make_job
from dist_alexnet.parallel.layout import Layout, Place, owned_rows
from tests.ranks.harness import Case, run_cases

LAYOUTS = {  # world: (data, replicas, columns)
    1: [(1, 1, 1)],
    2: [(1, 1, 2), (1, 2, 1), (2, 1, 1)],
    4: [(1, 2, 2), (1, 4, 1), (2, 1, 2)],
}
PRESETS = ("alexnet-2012", "alexnet-2012-paper")
ALL = [(preset, layout) for preset in PRESETS for layouts in LAYOUTS.values() for layout in layouts]


def name_of(preset: str, layout: tuple[int, int, int]) -> str:
    return f"float64-{preset}-{'x'.join(map(str, layout))}"


def overrides(preset: str, layout: tuple[int, int, int]) -> tuple[str, ...]:
    return (f"network.name={preset}", f"parallel.replicas={layout[1]}", f"parallel.columns={layout[2]}")


@pytest.fixture(scope="module")
def computed(config: Path, runs: Path) -> Path:
    runs.mkdir(exist_ok=True)
    for world, layouts in LAYOUTS.items():
        run_cases(
            world,
            config,
            [
                Case(name_of(preset, layout), overrides(preset, layout), "float64")
                for preset in PRESETS
                for layout in layouts
            ],
        )
    return runs


def result(runs: Path, preset: str, layout: tuple[int, int, int]) -> dict[str, Any]:
    return torch.load(runs / f"{name_of(preset, layout)}.pt", weights_only=True)


@pytest.mark.parametrize(("preset", "layout"), ALL)
def test_the_same_loss_and_gradients(computed: Path, preset: str, layout: tuple[int, int, int]) -> None:
    here, one_rank = result(computed, preset, layout), result(computed, preset, (1, 1, 1))
    assert float(here["loss"]) == pytest.approx(float(one_rank["loss"]), rel=1e-9)
    assert float(here["ahead"]) == float(one_rank["ahead"])
    for name, grad in one_rank["grads"].items():
        assert float((here["grads"][name] - grad).abs().max() / grad.abs().max()) < 1e-9, name


@pytest.mark.parametrize(("preset", "layout"), ALL)
def test_each_rank_holds_only_its_part(computed: Path, config: Path, preset: str, layout: tuple[int, int, int]) -> None:
    job = make_job(load_config(config, overrides(preset, layout)), layout[0] * layout[1] * layout[2])
    held = result(computed, preset, layout)["held"]
    for rank, (elements, size_bytes) in enumerate(held):
        place = Place(Layout(*layout), rank)
        owned = sum(len(owned_rows(tensor, place)) * tensor.row_elements for tensor in job.network.tensors)
        assert elements == owned
        assert size_bytes == 8 * owned
    if layout[1] * layout[2] > 1:
        assert max(elements for elements, _ in held) < 0.7 * job.network.parameters
