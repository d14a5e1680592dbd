"""Every preset in float64 on real ranks that each hold only their part: the same function, the same gradients."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_alexnet.errors import LayoutError
from dist_alexnet.network.batch_norm import parts_on
from dist_alexnet.network.sizes import network_for
from dist_alexnet.network.spec import PRESETS, spec_from
from dist_alexnet.parallel.layout import Layout, Place, owned_rows
from tests.ranks.graded import Question, apart, graded
from tests.ranks.pool import RankPool

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
LAYOUTS = {  # columns x replicas as the README names them, and data beside them
    2: [Layout(columns=2), Layout(replicas=2), Layout(data=2)],
    4: [Layout(columns=2, replicas=2), Layout(replicas=4), Layout(data=2, columns=2)],
    8: [Layout(columns=2, replicas=4)],
}


def question(name: str) -> Question:
    values = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    cifar = values["image_size"] < 64
    size = {"num_classes": 11, "width": 0.25 if cifar else 0.125, "image_size": None if cifar else 96}
    normalised = any(layer["kind"] == "batch_norm" for layer in values["layers"])
    return Question(values, size, groups=2 if normalised else 1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with RankPool(1, tmp_path_factory.mktemp("alone")) as pool:
        yield {name: pool.ask(graded, question(name), Layout())[0] for name in NAMES}


@pytest.fixture(scope="module", params=sorted(LAYOUTS))
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankPool]:
    with RankPool(request.param, tmp_path_factory.mktemp("pool")) as pool:
        yield pool


@pytest.mark.parametrize("name", NAMES)
def test_the_same_loss_and_gradients_on_every_layout(pool: RankPool, alone: dict[str, Any], name: str) -> None:
    columns = question(name).spec["columns"]
    for layout in LAYOUTS[pool.world_size]:
        if layout.columns <= columns:
            here = pool.ask(graded, question(name), layout)[0]
            assert apart(here, alone[name]) < 1e-9, layout
            assert here["ahead"] == alone[name]["ahead"]
            assert here["held"] == [owned(name, Place(layout, rank)) for rank in range(layout.world_size)]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("alexnet-bn")])
def test_batch_norm_under_accumulation(pool: RankPool, name: str, tmp_path: Path) -> None:
    """Four parts of the batch, brought by one forward or by four, whole on a rank or held by two or four of them."""
    if pool.world_size == 8:
        pytest.skip("the larger worlds differ from 4 ranks in nothing here")
    whole = replace(question(name), images=16, groups=4)
    with RankPool(1, tmp_path) as alone:
        expected = alone.ask(graded, whole, Layout())[0]
        in_four = alone.ask(graded, replace(whole, accumulation=4), Layout())[0]
    assert apart(in_four, expected) < 1e-9
    for layout in (one for one in LAYOUTS[pool.world_size] if one.columns <= whole.spec["columns"]):
        for accumulation in (1, 2, 4):
            asked = replace(whole, accumulation=accumulation)
            try:
                parts_on(layout, 16, 4, accumulation)
            except LayoutError:
                assert layout.data * accumulation > 4  # fewer than a part's images in a forward of all ranks
                continue
            assert apart(pool.ask(graded, asked, layout)[0], expected) < 1e-9, (layout, accumulation)


def owned(name: str, place: Place) -> int:
    asked = question(name)
    network = network_for(spec_from(asked.spec, name), **asked.size)
    return sum(len(owned_rows(tensor, place)) * tensor.row_elements for tensor in network.tensors)
