"""Small networks that nobody thought of: whatever the spec, every layout computes the same function."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from dist_alexnet.errors import ConfigError, LayoutError
from dist_alexnet.network.batch_norm import parts_on
from dist_alexnet.network.build import check_layout
from dist_alexnet.network.sizes import network_for
from dist_alexnet.network.spec import spec_from
from dist_alexnet.parallel.layout import Layout
from tests.ranks.graded import Question, apart, graded
from tests.ranks.pool import RankPool

IMAGES = 8
LAYOUTS = [
    Layout(columns=2, replicas=2),
    Layout(columns=2, data=2),
    Layout(replicas=4),
    Layout(replicas=2, data=2),
    Layout(data=4),
]
PATIENT = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@st.composite
def maps(draw: st.DrawFn, number: int, first: bool) -> list[dict[str, Any]]:
    """A convolution or a local layer, and what may follow it in any order."""
    kind = "conv" if first else draw(st.sampled_from(["conv", "conv", "local"]))
    layer: dict[str, Any] = {
        "kind": kind,
        "name": f"maps{number}",
        "filters": draw(st.sampled_from([2, 4])),
        "kernel": draw(st.sampled_from([1, 2, 3])),
        "pad": draw(st.integers(0, 1)),
        "stride": draw(st.sampled_from([1, 1, 2])),
        "init_sd": 0.3,
        "init_bias": draw(st.sampled_from([0.0, 0.5])),
        "has_bias": draw(st.booleans()),
        "reads": "all" if first else draw(st.sampled_from(["own", "all"])),
    }
    if kind == "conv":
        layer["rounding"] = draw(st.sampled_from(["up", "down"]))
        layer["groups"] = 1 if layer["reads"] == "all" else draw(st.sampled_from([1, 2]))
    behind = draw(
        st.lists(
            st.sampled_from(
                [
                    {"kind": "relu"},
                    {"kind": "lrn", "size": 3, "alpha": 0.1, "convention": "mean"},
                    {"kind": "lrn", "size": 4, "alpha": 0.1, "convention": "sum"},
                    {"kind": "spatial_norm", "size": 3, "alpha": 0.1},
                    {"kind": "max_pool", "size": 2, "stride": 2},
                    {"kind": "max_pool", "size": 3, "stride": 2},
                    {"kind": "avg_pool", "size": 3, "stride": 2},
                    {"kind": "batch_norm", "name": f"norm{number}"},
                    {"kind": "dropout", "name": f"drop{number}", "rate": 0.3},
                ]
            ),
            max_size=3,
            unique_by=lambda one: one.get("name", str(one)),
        )
    )
    return [layer, *behind]


@st.composite
def units(draw: st.DrawFn, number: int) -> list[dict[str, Any]]:
    """A fully connected layer and what may follow it."""
    layer = {
        "kind": "fc",
        "name": f"units{number}",
        "units": draw(st.integers(2, 5)),
        "init_sd": 0.3,
        "has_bias": draw(st.booleans()),
        "reads": draw(st.sampled_from(["own", "all"])),
    }
    scale = draw(st.sampled_from(["test", "training"]))
    dropout = {"kind": "dropout", "name": f"fall{number}", "rate": 0.4, "scale": scale}
    behind: list[list[dict[str, Any]]] = [[], [{"kind": "relu"}], [{"kind": "relu"}, dropout], [dropout]]
    return [layer, *draw(st.sampled_from(behind))]


@st.composite
def questions(draw: st.DrawFn) -> tuple[Question, Layout]:
    layers: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 3))):
        layers += draw(maps(number, number == 0))
    for number in range(draw(st.integers(0, 2))):
        layers += draw(units(number))
    layers.append({"kind": "fc", "name": "last", "units": "classes", "init": "torch"})
    spec = {
        "columns": draw(st.sampled_from([1, 2, 2])),
        "image_size": draw(st.integers(6, 11)),
        "pixel_std": 70.0,
        "layers": layers,
    }
    asked = Question(
        spec, {"num_classes": draw(st.integers(4, 7))}, images=IMAGES, groups=draw(st.sampled_from([1, 2, 4]))
    )
    return asked, draw(st.sampled_from([one for one in LAYOUTS if one.columns <= spec["columns"]]))


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RankPool, RankPool]]:
    folder = tmp_path_factory.mktemp("pools")
    with RankPool(1, folder) as one, RankPool(4, folder) as four:
        yield one, four


def agree(pools: tuple[RankPool, RankPool], asked: Question, layout: Layout) -> None:
    try:
        network = network_for(spec_from(asked.spec, "drawn"), **asked.size)
        check_layout(network, layout)
        parts_on(layout, IMAGES, asked.groups, 1)
    except (ConfigError, LayoutError):
        event("refused")
        return
    event("computed")
    one, four = pools
    assert apart(four.ask(graded, asked, layout)[0], one.ask(graded, asked, Layout())[0]) < 1e-9


@settings(PATIENT, max_examples=60, derandomize=True)
@given(drawn=questions())
def test_any_spec_on_any_layout(pools: tuple[RankPool, RankPool], drawn: tuple[Question, Layout]) -> None:
    agree(pools, *drawn)


@pytest.mark.long
@settings(PATIENT, max_examples=1000)
@given(drawn=questions())
def test_many_specs_on_any_layout(pools: tuple[RankPool, RankPool], drawn: tuple[Question, Layout]) -> None:
    agree(pools, *drawn)
