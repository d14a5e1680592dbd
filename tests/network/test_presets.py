"""Every preset is the network that its source says: parameters, sizes, and what the sources set layer by layer."""

import math
import re
from typing import Any

import pytest

from dist_alexnet.network.build import check_layout
from dist_alexnet.network.sizes import Network, network_for
from dist_alexnet.network.spec import PRESETS, BatchNorm, Conv, FullyConnected, Spec, Weighted, load_spec
from dist_alexnet.parallel.layout import Layout

# preset: parameters, and the side of the maps after every conv, local and pooling layer
OF_2012 = [55, 27, 27, 13, 13, 13, 13, 6]
IMAGENET = {
    "alexnet-2012": (60_965_224, OF_2012),
    "alexnet-2012-paper": (60_965_224, OF_2012),
    "alexnet-2012-unit": (60_965_224, OF_2012),
    "alexnet-bn": (60_965_224 - 96 - 256 - 384 - 384 + 2 * (96 + 256 + 384 + 384 + 256), OF_2012),
    "alexnet-bn-2": (60_965_224 + 2 * (96 + 256 + 384 + 384), OF_2012),
    "bvlc-alexnet": (60_965_224, OF_2012),
    "caffenet": (60_965_224, OF_2012),
    "net-145-half": (59_798_312, OF_2012),
    "net-146": (60_965_224 + 256 * (256 * 9 + 1), [*OF_2012, 6]),
    "net-146-2011": (67_897_960, [*OF_2012, 6]),
    "net-147": (60_965_224, [55, 28, 26, 13, 13, 13, 11, 6]),
    "net-148": (60_965_224, OF_2012),
    "net-150": (60_714_408, OF_2012),
    "net-167": (60_965_224, OF_2012),
    "net-170": (60_965_224, OF_2012),
    "net-177": (60_965_224, OF_2012),
    "one-tower-2014": (61_100_840, OF_2012),
    "torch7": (60_965_224 - 384 * 128 * 9, OF_2012),
    "torchvision": (61_100_840, OF_2012),
}
CIFAR = {
    "cifar-80sec": (145_578, [32, 16, 16, 8, 8, 4]),
    "cifar-19pct": (89_578, [32, 16, 16, 8, 8, 4]),
    "cifar-18pct": (89_578, [32, 16, 16, 8, 8, 4]),
    "cifar-13pct": (1_901_386, [32, 16, 16, 8, 8, 8]),
    "cifar-12pct": (1_901_386, [32, 16, 16, 8, 8, 8]),
    "cifar-11pct": (2_112_970, [24, 12, 12, 6, 6, 6]),
}
OWN = {"photographs": (1_143_720, [23, 11, 11, 5, 5, 5, 5, 2])}
ALL = IMAGENET | CIFAR | OWN
# what the decay multipliers of the CIFAR nets are of, as their headers say
CIFAR_DECAY = 0.004


def full(name: str) -> Network:
    return network_for(load_spec(name), num_classes=10 if name in CIFAR else 1000)


def weighted(name: str) -> dict[str, Weighted]:
    return {layer.name: layer for layer in load_spec(name).layers if isinstance(layer, Weighted)}


def without_names(spec: Spec, *kinds: str) -> list[dict[str, Any]]:
    """The layers as plain values, but those of some kinds."""
    return [layer.model_dump() for layer in spec.layers if layer.kind not in kinds]


def test_each_preset_is_listed_here() -> None:
    assert {path.stem for path in PRESETS.glob("*.yaml")} == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_parameters_and_sides(name: str) -> None:
    network = full(name)
    parameters, sides = ALL[name]
    assert network.parameters == parameters
    assert [
        step.gives[1] for step in network.steps if step.layer.kind in ("conv", "local", "max_pool", "avg_pool")
    ] == sides


@pytest.mark.parametrize("name", ALL)
def test_the_header_says_where_from_what_to_expect_and_in_which_pixels(name: str) -> None:
    text = (PRESETS / f"{name}.yaml").read_text()
    header = [line for line in text.partition("columns:")[0].splitlines() if line]
    assert all(line.startswith("# ") and len(line) <= 120 for line in header)
    for word in ("Source", "Expected", "Pixels"):
        assert sum(line.startswith(f"# {word}: ") for line in header) == 1, word
    assert re.search(r"view|centre crop|test set|no figure", " ".join(header)), "how the figure was measured"
    assert f"{full(name).parameters:,} parameters" in " ".join(line[2:] for line in header)
    divided = load_spec(name).pixel_std_3 != (1.0, 1.0, 1.0)
    assert divided == bool(re.search(r"# Pixels: .*divided by", text))


@pytest.mark.parametrize("name", ALL)
def test_fits_the_layouts(name: str) -> None:
    network = full(name)
    for columns in range(1, network.columns + 1):
        for replicas in (1, 2, 4):
            check_layout(network, Layout(1, replicas, columns))


def test_ungrouped() -> None:
    """Where every conv of net 145 reads both columns, it has the often quoted 62,378,344 parameters."""
    spec = load_spec("alexnet-2012")
    layers = tuple(
        layer.model_copy(update={"reads": "all"}) if isinstance(layer, Conv) else layer for layer in spec.layers
    )
    assert network_for(spec.model_copy(update={"layers": layers}), num_classes=1000).parameters == 62_378_344


def test_filters() -> None:
    """Filters and units of the whole network."""
    expected = {
        "alexnet-2012": [96, 256, 384, 384, 256, 4096, 4096, 1000],
        "bvlc-alexnet": [96, 256, 384, 384, 256, 4096, 4096, 1000],
        "net-145-half": [48, 128, 192, 192, 256, 4096, 4096, 1000],
        "net-150": [96, 320, 384, 384, 256, 8192, 4096, 1000],
        "one-tower-2014": [64, 192, 384, 256, 256, 4096, 4096, 1000],
        "torchvision": [64, 192, 384, 256, 256, 4096, 4096, 1000],
        "cifar-80sec": [32, 32, 64, 64, 10],
        "cifar-13pct": [64, 64, 32, 32, 10],
        "cifar-11pct": [64, 64, 64, 32, 10],
    }
    for name, gives in expected.items():
        assert [step.gives[0] for step in full(name).steps if isinstance(step.layer, Weighted)] == gives, name


def test_what_layers_read() -> None:
    for name, expected in (
        ("alexnet-2012", ["conv1", "conv3", "fc6", "fc7", "fc8"]),
        ("net-150", ["conv1", "fc8"]),
        ("torch7", ["conv1", "fc6", "fc7", "fc8"]),
    ):
        layers = [layer for layer in load_spec(name).layers if isinstance(layer, Conv | FullyConnected)]
        assert [layer.name for layer in layers if layer.reads == "all"] == expected


def test_initial_values_and_rates_of_2012() -> None:
    for name in (
        "alexnet-2012",
        "net-146",
        "net-146-2011",
        "net-147",
        "net-148",
        "net-150",
        "net-167",
        "net-170",
        "net-177",
        "net-145-half",
    ):
        for layer in weighted(name).values():
            convs = layer.name in ("conv3", "conv4", "conv5", "conv6")
            assert layer.init_sd == (0.03 if convs else 0.01), (name, layer.name)
            zeros = ("conv1", "conv3", "bottleneck", "fc8")
            assert layer.init_bias == (0 if layer.name in zeros else 1), (name, layer.name)
            assert (layer.weight.lr, layer.weight.decay, layer.bias.lr, layer.bias.decay) == (1, 1, 2, 0)


def test_the_relatives_of_145_differ_where_they_say() -> None:
    base = load_spec("alexnet-2012")
    assert load_spec("net-170") == base
    assert without_names(load_spec("net-148")) == without_names(base, "lrn", "spatial_norm")
    assert without_names(load_spec("net-177"), "dropout") == without_names(base, "dropout")
    assert [layer.kind for layer in load_spec("net-167").layers].count("lrn") == 1
    assert load_spec("net-146-2011").layers[:-2] == load_spec("net-146").layers[:-1]
    assert load_spec("cifar-12pct") == load_spec("cifar-13pct")


def test_unit_pixels_are_the_same_run_in_other_units() -> None:
    """Pixels / s, conv1's weights times s, their rate times s^2, their decay / s^2, and nothing else."""
    base, unit = load_spec("alexnet-2012"), load_spec("alexnet-2012-unit")
    s = unit.pixel_std_3[0]
    first, scaled = base.layers[0], unit.layers[0]
    assert isinstance(first, Conv)
    assert isinstance(scaled, Conv)
    assert first.init_sd is not None
    assert s == 74
    assert base.layers[1:] == unit.layers[1:]
    assert scaled.init_sd == pytest.approx(first.init_sd * s, rel=1e-15)
    assert scaled.weight.lr == s**2
    assert scaled.weight.decay == pytest.approx(1 / s**2, rel=1e-15)
    assert scaled.bias == first.bias


def test_caffe() -> None:
    """One column, because its norm crosses the border of the two; the groups stay."""
    for name, order, bias in (("bvlc-alexnet", "lrn max_pool", 0.1), ("caffenet", "max_pool lrn", 1)):
        spec = load_spec(name)
        assert (spec.columns, spec.image_size) == (1, 227)
        assert f"conv relu {order} conv relu {order} conv" in " ".join(layer.kind for layer in spec.layers)
        assert [layer.groups for layer in spec.layers if isinstance(layer, Conv)] == [1, 2, 1, 2, 2]
        layers = weighted(name)
        assert [layer.init_bias for layer in layers.values()] == [0, bias, 0, bias, bias, bias, bias, 0]
        assert [layer.init_sd for layer in layers.values()] == [0.01] * 5 + [0.005, 0.005, 0.01]
        assert {layer.k for layer in spec.layers if layer.kind == "lrn"} == {1}


def test_torchvision() -> None:
    """The shapes of its state_dict, its initial values and its pixels."""
    network = full("torchvision")
    assert [tensor.shape for tensor in network.tensors if tensor.name.endswith("weight")] == [
        (64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3),
        (4096, 9216), (4096, 4096), (1000, 4096),
    ]  # fmt: skip
    first = network.steps[0]
    assert first.weight is not None
    assert first.bias is not None
    for learned in (first.weight, first.bias):
        assert (learned.initial.kind, learned.initial.size) == ("uniform", math.sqrt(1 / (3 * 11 * 11)))
        assert (learned.multipliers.lr, learned.multipliers.decay) == (1, 1)
    assert network.pixel_std == pytest.approx((255 * 0.229, 255 * 0.224, 255 * 0.225))
    kinds = " ".join(layer.kind for layer in load_spec("torchvision").layers)
    assert kinds.endswith("max_pool dropout fc relu dropout fc relu fc")
    assert "lrn" not in kinds


def test_batch_norm() -> None:
    """After each conv, learned; or, as the shipped solvers train it, in front of conv2 to conv5 and not learned."""
    norms = {
        name: [one for one in load_spec(name).layers if isinstance(one, BatchNorm)]
        for name in ("alexnet-bn", "alexnet-bn-2")
    }
    assert [len(found) for found in norms.values()] == [5, 4]
    assert {(norm.weight.lr, norm.bias.lr) for norm in norms["alexnet-bn"]} == {(1, 1)}
    assert {(norm.weight.lr, norm.bias.lr) for norm in norms["alexnet-bn-2"]} == {(0, 0)}
    assert [layer.has_bias for layer in weighted("alexnet-bn").values()] == [False] * 4 + [True] * 4
    assert all(layer.has_bias for layer in weighted("alexnet-bn-2").values())


@pytest.mark.parametrize(
    ("name", "decay", "init_sd"),
    [
        ("cifar-80sec", [0.004, 0.004, 0.004, 0.03, 0.03], [1e-4, 0.01, 0.01, 0.1, 0.1]),
        ("cifar-19pct", [0.004, 0.004, 0.004, 3], [1e-4, 0.01, 0.01, 0.01]),
        ("cifar-18pct", [0.004, 0.004, 0.004, 1], [1e-4, 0.01, 0.01, 0.01]),
        ("cifar-13pct", [0, 0, 0.004, 0.004, 0.004], [1e-4, 0.01, 0.04, 0.04, 0.01]),
        ("cifar-11pct", [0, 0, 0.004, 0.004, 0.01], [1e-4, 0.01, 0.04, 0.04, 0.01]),
    ],
)
def test_cifar(name: str, decay: list[float], init_sd: list[float]) -> None:
    layers = weighted(name).values()
    assert [CIFAR_DECAY * layer.weight.decay for layer in layers] == pytest.approx(decay)
    assert [layer.init_sd for layer in layers] == init_sd
    assert {(layer.bias.lr, layer.bias.decay, layer.init_bias) for layer in layers} == {(2, 0, 0)}
    assert f"weight_decay {CIFAR_DECAY}" in " ".join((PRESETS / f"{name}.yaml").read_text().split("\n# "))


@pytest.mark.parametrize("name", IMAGENET)
def test_the_last_layers_are_fully_connected(name: str) -> None:
    layers = [layer for layer in load_spec(name).layers if isinstance(layer, FullyConnected)]
    extra = ["bottleneck"] if name == "net-146-2011" else []
    assert [layer.name for layer in layers] == ["fc6", "fc7", *extra, "fc8"]
