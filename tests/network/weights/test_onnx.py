"""The ONNX model is the network: against the trainer's module, for every preset and for what presets do not say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from dist_alexnet.errors import ConfigError, WeightsError
from dist_alexnet.network.spec import PRESETS, load_spec, spec_from
from dist_alexnet.network.weights.onnx_file import onnx_model, write_onnx
from dist_alexnet.network.weights.state import Weights
from dist_alexnet.parallel.mesh import Mesh
from tests.network.weights.drawn import CLASSES, apart, drawn, logits_of, pictures
from tests.ranks.test_any_spec import maps, units

onnxruntime = pytest.importorskip("onnxruntime")

CONV = {"kind": "conv", "name": "conv1", "filters": 6, "kernel": 3, "stride": 2, "reads": "all", "init_sd": 0.01}
LAST = {"kind": "fc", "name": "fc", "units": "classes", "init_sd": 0.01}


def run(model: Any, x: torch.Tensor) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixels": x.numpy()})
    return torch.from_numpy(logits)


def spec_of(*layers: dict[str, Any], columns: int = 2) -> Weights:
    return drawn(spec_from({"columns": columns, "image_size": 20, "layers": [CONV, *layers, LAST]}, "test"), 1, 20)


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset(preset: str, alone: Mesh) -> None:
    weights = drawn(preset)
    x = pictures(5, weights.pixels["image_size"])
    expected = logits_of(weights, alone, x)
    found = run(onnx_model(weights), x)
    assert found.shape == expected.shape == (5, CLASSES)
    assert apart(found, expected) <= 1e-4


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        (
            "overhanging windows",
            [{"kind": "max_pool", "size": 4, "stride": 3}, {"kind": "avg_pool", "size": 2, "stride": 2}],
        ),
        ("average of an overhang", [{"kind": "avg_pool", "size": 4, "stride": 3}]),
        ("both conventions", [{"kind": "lrn", "size": 3, "alpha": 0.01, "convention": "sum"}]),
        ("spatial norm", [{"kind": "spatial_norm", "size": 3, "alpha": 0.1}]),
        ("dropout of 2012", [{"kind": "dropout", "name": "drop", "rate": 0.3}]),
        ("dropout of torch", [{"kind": "dropout", "name": "drop", "rate": 0.3, "scale": "training"}]),
        ("groups in columns", [{"kind": "conv", "name": "c2", "filters": 4, "kernel": 3, "groups": 2, "init_sd": 0.1}]),
        (
            "local of both columns, overhanging",
            [
                {
                    "kind": "local",
                    "name": "l",
                    "filters": 3,
                    "kernel": 4,
                    "stride": 2,
                    "pad": 1,
                    "reads": "all",
                    "init_sd": 1,
                }
            ],
        ),
        (
            "local of its own column, without a bias",
            [{"kind": "local", "name": "l", "filters": 3, "kernel": 3, "has_bias": False, "init_sd": 0.1}],
        ),
        (
            "own units, without a bias",
            [{"kind": "fc", "name": "f", "units": 5, "reads": "own", "has_bias": False, "init_sd": 0.1}],
        ),
    ],
)
def test_what_presets_do_not_say(name: str, layers: list[dict[str, Any]], alone: Mesh) -> None:
    weights = spec_of(*layers)
    x = pictures(5, 20)
    assert apart(run(onnx_model(weights), x), logits_of(weights, alone, x)) <= 1e-4


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    layers: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 3))):
        layers += draw(maps(number, number == 0))
    for number in range(draw(st.integers(0, 2))):
        layers += draw(units(number))
    return {
        "columns": draw(st.sampled_from([1, 2])),
        "image_size": draw(st.integers(6, 11)),
        "pixel_std": [70.0, 60.0, 50.0],
        "layers": [*layers, LAST],
    }


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=100, derandomize=True)
@given(spec=specs())
def test_any_spec(spec: dict[str, Any], alone: Mesh) -> None:
    try:
        weights = drawn(spec_from(spec, "drawn"), 1, spec["image_size"])
        model = onnx_model(weights)
    except (ConfigError, WeightsError):  # too small a map; an even window of response norm
        event("refused")
        return
    event("computed")
    x = pictures(3, spec["image_size"])
    expected = logits_of(weights, alone, x)
    assert torch.allclose(run(model, x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_any_number_of_images(alone: Mesh) -> None:
    model, weights = onnx_model(drawn("net-150")), drawn("net-150")
    for images in (1, 3):
        x = pictures(5, 83)[:images]
        assert torch.allclose(run(model, x), logits_of(weights, alone, x), rtol=1e-4, atol=1e-4)


def test_operators_and_metadata(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    write_onnx(drawn("alexnet-2012"), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("LRN") == 2
    attributes = [attribute for node in model.graph.node if node.op_type == "Conv" for attribute in node.attribute]
    assert [attribute.i for attribute in attributes if attribute.name == "group"] == [1, 2, 1, 2, 2]
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["data"])["mean"] == [120.5, 119.0, 101.25]
    assert "minus the mean" in told["input"]
    assert list(tmp_path.iterdir()) == [tmp_path / "net.onnx"]


def test_an_even_window_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"lrn2 has a window of 4 maps, expected an odd number"):
        onnx_model(spec_of({"kind": "lrn", "size": 4, "convention": "mean"}))


def test_the_measure_sees_a_norm_that_crosses_columns(alone: Mesh) -> None:
    """What 1e-4 is worth: the same weights with the response norm across both columns are further apart."""
    weights = drawn("alexnet-2012")
    crossing = load_spec("alexnet-2012").model_dump()
    crossing["columns"] = 1
    for layer in crossing["layers"]:
        for size in ("filters", "units"):
            if isinstance(layer.get(size), int):
                layer[size] *= 2
        if layer["kind"] == "conv" and layer["reads"] == "own":
            layer["groups"] = 2
    other = Weights(**{**vars(weights), "spec": spec_from(crossing, "test")})
    x = pictures(5, 83)
    assert apart(run(onnx_model(other), x), logits_of(weights, alone, x)) > 1e-2
    assert np.isfinite(apart(run(onnx_model(other), x), logits_of(weights, alone, x)))
