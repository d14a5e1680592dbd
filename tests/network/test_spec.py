"""The presets have the sizes of 2012, and a spec that cannot be is refused in one sentence that names the layer."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dist_alexnet.errors import ConfigError, LayoutError
from dist_alexnet.network.build import check_layout
from dist_alexnet.network.sizes import Network, network_for
from dist_alexnet.network.spec import PRESETS, Weighted, load_spec, spec_from
from dist_alexnet.parallel.layout import Layout

NAMES = ("alexnet-2012", "alexnet-2012-paper")
SHAPES = {
    "conv1": (96, 3, 11, 11),
    "conv2": (256, 48, 5, 5),
    "conv3": (384, 256, 3, 3),
    "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3),
    "fc6": (4096, 9216),
    "fc7": (4096, 4096),
    "fc8": (1000, 4096),
}


def full(name: str) -> Network:
    return network_for(load_spec(name), num_classes=1000)


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name: str) -> None:
    network = full(name)
    assert network.parameters == 60_965_224
    expected = {}
    for layer, shape in SHAPES.items():
        expected[f"{layer}.weight"], expected[f"{layer}.bias"] = shape, shape[:1]
    assert {tensor.name: tensor.shape for tensor in network.tensors} == expected
    assert {tensor.name for tensor in network.tensors if tensor.cut == "column"} == {
        f"conv{i}.{kind}" for i in range(1, 6) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("name", NAMES)
def test_activations(name: str) -> None:
    sides = [
        (step.layer.kind, step.gives) for step in full(name).steps if step.layer.kind in ("conv", "max_pool", "fc")
    ]
    assert sides == [
        ("conv", (96, 55, 55)),
        ("max_pool", (96, 27, 27)),
        ("conv", (256, 27, 27)),
        ("max_pool", (256, 13, 13)),
        ("conv", (384, 13, 13)),
        ("conv", (384, 13, 13)),
        ("conv", (256, 13, 13)),
        ("max_pool", (256, 6, 6)),
        ("fc", (4096,)),
        ("fc", (4096,)),
        ("fc", (1000,)),
    ]


def test_order_of_layers() -> None:
    """As run, conv1 is normalised before its ReLU and conv5 pooled before its; as written, ReLU comes first."""
    kinds = {name: " ".join(step.layer.kind for step in full(name).steps) for name in NAMES}
    end = "fc relu dropout fc relu dropout fc"
    assert kinds["alexnet-2012"] == (
        f"conv lrn max_pool relu conv relu lrn spatial_norm max_pool conv relu conv relu conv max_pool relu {end}"
    )
    assert kinds["alexnet-2012-paper"] == (
        f"conv relu lrn max_pool conv relu lrn max_pool conv relu conv relu conv relu max_pool {end}"
    )


@pytest.mark.parametrize(("name", "bias_lr", "bias_decay"), [("alexnet-2012", 2, 0), ("alexnet-2012-paper", 1, 1)])
def test_multipliers(name: str, bias_lr: float, bias_decay: float) -> None:
    """As run, biases learn twice as fast and do not decay; as written, all is equal."""
    layers = [step.layer for step in full(name).steps if isinstance(step.layer, Weighted)]
    assert len(layers) == 8
    assert {(layer.weight.lr, layer.weight.decay) for layer in layers} == {(1, 1)}
    assert {(layer.bias.lr, layer.bias.decay) for layer in layers} == {(bias_lr, bias_decay)}


def test_columns_meet_before_conv3_only() -> None:
    for name in NAMES:
        reads = {step.layer.name: step.layer.reads for step in full(name).steps if step.layer.kind == "conv"}
        assert reads == {"conv1": "all", "conv2": "own", "conv3": "all", "conv4": "own", "conv5": "own"}


def test_sizes_of_ones_own() -> None:
    network = network_for(load_spec(NAMES[0]), num_classes=10, width=0.25, image_size=64, dropout=0.25)
    shapes = {tensor.name: tensor.shape for tensor in network.tensors}
    assert (shapes["conv1.weight"], shapes["conv2.weight"]) == ((24, 3, 11, 11), (64, 12, 5, 5))
    assert (shapes["fc6.weight"], shapes["fc8.weight"]) == ((1024, 64), (10, 1024))
    assert [step.layer.rate for step in network.steps if step.layer.kind == "dropout"] == [0.25, 0.25]
    assert [step.layer.rate for step in full(NAMES[0]).steps if step.layer.kind == "dropout"] == [0.5, 0.5]


def test_plain_values_tell_networks_apart() -> None:
    spec = load_spec(NAMES[0])
    plain = network_for(spec, num_classes=10).as_dict()
    assert plain == network_for(spec, num_classes=10).as_dict()
    for other in ({"num_classes": 11}, {"width": 0.5}, {"image_size": 223}, {"dropout": 0.4}):
        assert network_for(spec, **{"num_classes": 10, **other}).as_dict() != plain
    paper = network_for(load_spec(NAMES[1]), num_classes=10).as_dict()
    assert paper != plain
    assert paper["1.conv1"]["bias"] == {"lr": 1.0, "decay": 1.0}, "a setting is told whole, or not at all"


def test_a_spec_survives_a_checkpoint() -> None:
    for name in NAMES:
        spec = load_spec(name)
        assert spec_from(spec.model_dump(mode="json"), "checkpoint") == spec


def test_a_file_is_read_as_a_preset_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes((PRESETS / "alexnet-2012.yaml").read_bytes())
    assert load_spec(str(path)) == load_spec("alexnet-2012")


# ---- refusals -------------------------------------------------------------------------------------------------------


def preset_values() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((PRESETS / "alexnet-2012.yaml").read_text())
    return values


def refusal(values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        spec_from(values, "mine.yaml")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("network mine.yaml: ")
    return line.removeprefix("network mine.yaml: ")


def changed(layer: int, **settings: Any) -> dict[str, Any]:
    """The preset with settings of one layer (counted from 1) changed; None takes one away."""
    values = preset_values()
    merged = {**values["layers"][layer - 1], **settings}
    values["layers"][layer - 1] = {key: value for key, value in merged.items() if value is not None}
    return values


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (changed(1, kind="convolution"), ["layer 1 (conv1) is of kind 'convolution', expected", "conv, dropout, fc"]),
        (changed(4, kind=None), ["layer 4", "kind None", "expected kind: avg_pool, batch_norm"]),
        (changed(1, filters=None, filterz=48), ["layer 1 (conv1)", "filterz", "unknown key", "filters, groups"]),
        (changed(1, filters=None), ["layer 1 (conv1)", "filters", "required"]),
        (changed(3, strides=2), ["layer 3 (max_pool)", "strides", "expected one of kind, size, stride"]),
        (changed(10, bias={"rate": 2}), ["layer 10 (conv3)", "bias.rate", "expected one of decay, lr"]),
        (changed(5, kernel=0), ["layer 5 (conv2)", "kernel is 0", "greater than 0"]),
        (changed(5, reads="both"), ["layer 5 (conv2)", "reads is 'both'", "'own' or 'all'"]),
        (changed(2, convention="total"), ["layer 2 (lrn)", "convention is 'total'", "'mean' or 'sum'"]),
        (changed(5, init_sd=0), ["layer 5 (conv2)", "init_sd is 0"]),
        (changed(5, name="conv.2"), ["layer 5 (conv.2)", "name is 'conv.2'"]),
        (changed(19, rate=1), ["layer 19 (drop6)", "rate is 1", "less than 1"]),
        (changed(5, name="conv1"), ["two layers are named 'conv1'"]),
        (changed(22, name="drop6"), ["two layers are named 'drop6'"]),
        (changed(17, units="many"), ["layer 17 (fc6) units is 'many', expected a whole number, or 'classes'"]),
        (changed(17, units=0), ["layer 17 (fc6) has 0 units"]),
        (changed(23, units=10), ["the last layer must be kind fc with units: classes"]),
        (changed(1, reads="own"), ["conv1 reads 'own'", "'all'"]),
        (changed(3, stride=4), ["layer 3 (max_pool)", "stride 4", "at most its size (3)"]),
        (changed(8, size=4), ["layer 8 (spatial_norm)", "size 4", "odd"]),
        ({**preset_values(), "columns": 3}, ["columns is 3", "1 or 2"]),
        ({**preset_values(), "colums": 2}, ["colums is an unknown key", "columns, image_size, layers"]),
        ({**preset_values(), "layers": []}, ["last layer"]),
        ({**preset_values(), "layers": preset_values()["layers"][:-1]}, ["last layer"]),
        ({**preset_values(), "layers": preset_values()["layers"][16:]}, ["fc6", "expected kind conv"]),
        ({**preset_values(), "layers": [{"kind": "dropout", "name": "d"}, *preset_values()["layers"]]}, ["layer 1"]),
        ({**preset_values(), "layers": [preset_values()["layers"][1], *preset_values()["layers"]]}, ["layer 1 (lrn)"]),
        (
            {
                **preset_values(),
                "layers": [*preset_values()["layers"][:-1], {"kind": "max_pool"}, changed(1)["layers"][-1]],
            },
            ["max_pool", "after a fc layer"],
        ),
        ({**preset_values(), "layers": "conv"}, ["layers is 'conv'"]),
        ({**preset_values(), "layers": ["conv"]}, ["layer 1 (conv) is 'conv', expected kind: avg_pool"]),
        ({**preset_values(), "pixel_std": "unit"}, ["pixel_std is 'unit', expected a number, or three"]),
        ({**preset_values(), "pixel_std": [1, 2]}, ["pixel_std is [1, 2], expected a number, or three"]),
        (["conv"], ["it is ['conv'], expected columns, image_size, layers"]),
        (None, ["it is None, expected columns, image_size, layers"]),
    ],
)
def test_a_spec_that_cannot_be(values: Any, says: list[str]) -> None:
    line = refusal(values)
    assert all(part in line for part in says), line


@pytest.mark.parametrize("text", [b"layers: [", b"\xff\xfe", b"", b"5"])
def test_a_file_that_is_no_spec(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"^network .*mine\.yaml") as caught:
        load_spec(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_preset(tmp_path: Path) -> None:
    for name in ("alexnet-2013", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"expected a preset \(.*alexnet-2012, .*\) or the path"):
            load_spec(name)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ({"width": 0.3}, "network.width is 0.3, which gives conv1 14.4 filters"),
        ({"width": 0.001}, "network.width is 0.001, which gives conv1 0.048 filters"),
        ({"width": 1 / 128}, "conv1 0.375 filters"),
        ({"image_size": 10}, "conv1 sees 10 pixels, expected at least 11: raise data.image_size"),
        ({"image_size": 15}, r"layer 3 \(max_pool\) sees 2 pixels, expected at least 3"),
        ({"image_size": 40}, r"layer 15 \(max_pool\) sees 2 pixels, expected at least 3"),
    ],
)
def test_a_size_that_does_not_come_out(size: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        network_for(load_spec("alexnet-2012"), num_classes=10, **size)


def test_widths_that_come_out() -> None:
    for sixteenths in range(1, 33):
        network = network_for(load_spec("alexnet-2012"), num_classes=10, width=sixteenths / 16, image_size=64)
        assert network.tensors[0].shape[0] == 6 * sixteenths


def test_a_layout_that_the_network_cannot_take() -> None:
    spec = load_spec("alexnet-2012")
    network = network_for(spec, num_classes=10)
    check_layout(network, Layout(data=3, replicas=5, columns=2))
    with pytest.raises(LayoutError, match=r"fc8\.weight has 10 rows, expected at least one for each of 12 ranks"):
        check_layout(network, Layout(replicas=6, columns=2))
    one_column = network_for(spec.model_copy(update={"columns": 1}), num_classes=10)
    with pytest.raises(LayoutError, match=r"parallel\.columns is 2, but the network has 1 column: set it to 1"):
        check_layout(one_column, Layout(columns=2))
