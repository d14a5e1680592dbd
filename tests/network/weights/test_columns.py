"""Two columns apart and together again, bit for bit; one grouped net of both where no layer stays in its column."""

import pytest
import torch

from dist_alexnet.errors import WeightsError
from dist_alexnet.network.sizes import network_for
from dist_alexnet.network.spec import Spec, load_spec, spec_from
from dist_alexnet.network.weights.columns import join_columns, one_column, split_columns
from dist_alexnet.network.weights.function import differences_in_function
from dist_alexnet.network.weights.state import Weights, shapes_of
from dist_alexnet.parallel.mesh import Mesh
from tests.network.weights.drawn import apart, drawn, logits_of, pictures


def test_apart_and_together() -> None:
    for preset in ("alexnet-2012", "net-150", "net-146"):
        weights = drawn(preset)
        apart_ = split_columns(weights.network, weights.tensors)
        assert len(apart_.columns) == 2
        assert set(apart_.shared) == {"fc8.weight", "fc8.bias"}
        joined = join_columns(weights.network, apart_.columns, apart_.shared)
        assert list(joined) == list(weights.tensors)
        assert all(torch.equal(joined[key], value) for key, value in weights.tensors.items())


def test_the_originals_names_and_shapes() -> None:
    network = network_for(load_spec("alexnet-2012"), num_classes=1000)
    state = {name: torch.empty(1).expand(shape) for name, shape in shapes_of(network).items()}
    column = split_columns(network, state).columns[1]
    assert {name: tuple(value.shape) for name, value in column.items() if name.endswith("weight")} == {
        "conv1b.weight": (48, 3, 11, 11),
        "conv2b.weight": (128, 48, 5, 5),
        "conv3b.weight": (192, 256, 3, 3),
        "conv4b.weight": (192, 192, 3, 3),
        "conv5b.weight": (128, 192, 3, 3),
        "fc6b.weight": (2048, 9216),
        "fc7b.weight": (2048, 4096),
    }


def test_the_second_column_is_the_second_half() -> None:
    weights = drawn("alexnet-2012")
    first, second = split_columns(weights.network, weights.tensors).columns
    whole = weights.tensors["conv2.weight"]
    assert torch.equal(first["conv2a.weight"], whole[: len(whole) // 2])
    assert torch.equal(second["conv2b.weight"], whole[len(whole) // 2 :])


def test_what_does_not_fit_is_named() -> None:
    weights = drawn("alexnet-2012")
    made = split_columns(weights.network, weights.tensors)
    first, second = made.columns
    with pytest.raises(WeightsError, match="1 columns are given, expected the network's 2"):
        join_columns(weights.network, [first], made.shared)
    less = {key: value for key, value in second.items() if key != "fc6b.bias"}
    with pytest.raises(WeightsError, match=r"lack fc6b\.bias and also hold fc9b\.bias"):
        join_columns(weights.network, [first, {**less, "fc9b.bias": torch.zeros(1)}], made.shared)
    with pytest.raises(WeightsError, match=r"conv3b\.bias is of another shape"):
        join_columns(weights.network, [first, {**second, "conv3b.bias": torch.zeros(1)}], made.shared)
    with pytest.raises(WeightsError, match=r"lacks fc8\.bias"):
        join_columns(weights.network, made.columns, {"fc8.weight": made.shared["fc8.weight"]})


@pytest.mark.parametrize("preset", ["net-148", "alexnet-bn"])
def test_one_grouped_net_is_the_same_function(preset: str, alone: Mesh) -> None:
    weights = drawn(preset)
    one = one_column(weights.spec)
    assert one.columns == 1
    spec_from(one.model_dump(mode="json"), "one column")  # a net that a user could have written
    grouped = Weights(**{**vars(weights), "spec": one})
    assert shapes_of(grouped.network) == shapes_of(weights.network)
    assert one_column(one) == one
    assert differences_in_function(one, weights.spec) == []
    x = pictures(4, 83)
    assert apart(logits_of(grouped, alone, x), logits_of(weights, alone, x)) <= 1e-6


def test_what_one_column_cannot_say() -> None:
    for preset, said in {"alexnet-2012": r"layer 2 \(lrn\)", "net-150": r"layer 2 \(lrn\)"}.items():
        with pytest.raises(WeightsError, match=f"{said} stays in its own column"):
            one_column(load_spec(preset))
    own = {"kind": "fc", "name": "fc6", "units": 4, "reads": "own", "init_sd": 1}
    conv = {"kind": "conv", "name": "conv1", "filters": 4, "kernel": 3, "reads": "all", "init_sd": 1}
    last = {"kind": "fc", "name": "fc7", "units": "classes", "init_sd": 1}
    spec = spec_from({"columns": 2, "image_size": 8, "layers": [conv, own, last]}, "test")
    with pytest.raises(WeightsError, match=r"layer 2 \(fc6\) stays in its own column"):
        one_column(spec)


def test_what_differs_in_function() -> None:
    def but(preset: str, **change: object) -> Spec:
        spec = load_spec(preset)
        layers = [
            layer.model_copy(update={k: v for k, v in change.items() if hasattr(layer, k)}) for layer in spec.layers
        ]
        return spec.model_copy(update={"layers": tuple(layers)})

    same = load_spec("alexnet-2012")
    assert differences_in_function(same, but("alexnet-2012", init_bias=3.0, init_sd=9.0)) == []
    assert differences_in_function(same, but("alexnet-2012", rate=0.2)) == [
        "layer 19 (drop6): rate 0.5 against 0.2",
        "layer 22 (drop7): rate 0.5 against 0.2",
    ]
    assert differences_in_function(load_spec("torchvision"), but("torchvision", rate=0.2)) == []
    assert differences_in_function(same, but("alexnet-2012", k=1.0))[0] == "layer 2 (lrn): k 2.0 against 1.0"
