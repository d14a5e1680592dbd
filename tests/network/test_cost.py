"""What `network show` says, against the known figures of net 145: its layers, and what its two columns exchange."""

import subprocess
import sys
from fractions import Fraction

import pytest

from dist_alexnet.errors import ConfigError, LayoutError
from dist_alexnet.network.cost import Sent, layer_costs, sent_on
from dist_alexnet.network.show import layers_text, layout_text, read_layout
from dist_alexnet.network.sizes import Network, network_for
from dist_alexnet.network.spec import load_spec
from dist_alexnet.parallel.layout import Layout, Place, owned_rows

# layer: weights, biases, output elements, multiplications, of the whole net 145
NET_145 = {
    "conv1": (34_848, 96, 290_400, 105_415_200),
    "conv2": (307_200, 256, 186_624, 223_948_800),
    "conv3": (884_736, 384, 64_896, 149_520_384),
    "conv4": (663_552, 384, 64_896, 112_140_288),
    "conv5": (442_368, 256, 43_264, 74_760_192),
    "fc6": (37_748_736, 4_096, 4_096, 37_748_736),
    "fc7": (16_777_216, 4_096, 4_096, 16_777_216),
    "fc8": (4_096_000, 1_000, 1_000, 4_096_000),
}


def full(name: str = "alexnet-2012", num_classes: int = 1000) -> Network:
    return network_for(load_spec(name), num_classes=num_classes)


def sent(columns: int, replicas: int, name: str = "alexnet-2012") -> Sent:
    return sent_on(full(name), Layout(1, replicas, columns))


def elements(columns: int, replicas: int, name: str = "alexnet-2012") -> dict[str, Fraction]:
    return {one.before: one.elements for one in sent(columns, replicas, name).crossings}


def test_layers_of_net_145() -> None:
    costs = layer_costs(full())
    found = {
        cost.step.layer.name: (cost.weights, cost.biases, cost.outputs, cost.macs)
        for cost in costs
        if cost.step.layer.kind in ("conv", "fc")
    }
    assert found == NET_145
    assert sum(cost.weights for cost in costs) == 60_954_656
    assert sum(cost.biases for cost in costs) == 10_568
    assert sum(cost.macs for cost in costs) == 724_406_816


def test_one_column_of_it_is_not_half_the_work() -> None:
    """Net 145-half has 391.5 million multiplications: its fully connected layers are as wide as both columns."""
    assert round(sum(cost.macs for cost in layer_costs(full("net-145-half"))) / 1e6, 1) == 391.5


def test_multiplications_of_a_local_layer() -> None:
    """As a convolution of the same shape: only the weights are more."""
    cost = next(cost for cost in layer_costs(full("cifar-13pct", 10)) if cost.step.layer.kind == "local")
    places, fan_in = 8 * 8, 64 * 9
    assert (cost.weights, cost.biases) == (32 * places * fan_in, 32 * places)
    assert cost.macs == 32 * places * fan_in


def test_two_columns_exchange_at_four_points() -> None:
    assert elements(2, 1) == {"conv3": 21_632, "fc6": 4_608, "fc7": 2_048, "fc8": 2_048}
    found = sent(2, 1)
    assert found.elements == 30_336
    assert sum(one.sent_bytes(2) for one in found.crossings) == 121_344
    assert found.held == 30_482_612
    assert found.replica_elements == 0
    assert found.small_bytes == 2 * 2 * 4  # 2 all-reduces of 2 floats over 2 ranks


def test_bytes_of_a_step() -> None:
    """128 images in half precision are 15.5 MB, and 1,024 are 124.3."""
    found = sent(2, 1)
    for images, megabytes in ((128, 15.5), (256, 31.1), (512, 62.1), (1024, 124.3)):
        assert round(float(found.step_bytes(images, 2)) / 1e6, 1) == megabytes


def test_columns_times_replicas() -> None:
    """Two columns x two replicas, the fully connected layers cut over all four ranks."""
    assert elements(2, 2) == {"conv3": 10_816, "fc6": 6_912, "fc7": 3_072, "fc8": 3_072}
    found = sent(2, 2)
    assert found.elements == 23_872
    assert found.replica_elements == 1_167_040  # a column's convolutions: an all-reduce of 2 sends each element once
    assert found.small_bytes == 2 * 2 * 2 * Fraction(3, 4) * 4 + 24 * Fraction(1, 2)


def test_replicas_alone() -> None:
    """One weird trick: nothing crosses before the fully connected layers."""
    assert elements(1, 2) == {"fc6": 4_608, "fc7": 2_048, "fc8": 2_048}
    assert sent(1, 2).elements == 8_704
    assert sent(1, 2).replica_elements == 2_334_080


def test_one_rank_sends_nothing() -> None:
    found = sent(1, 1)
    assert found.crossings == ()
    assert found.small_bytes == found.replica_elements == 0
    assert found.held == 60_965_224


def test_columns_that_do_not_speak() -> None:
    """Net 150 exchanges before its last layer only; with replicas, each column gathers its own."""
    assert elements(2, 1, "net-150") == {"fc8": 2_048}
    # own features of half the images to the other replica; then own units of all images; then all units, to three
    assert elements(2, 2, "net-150") == {"fc6": 2_304, "fc7": 2_048, "fc8": 3_072}


def test_rows_that_do_not_divide_are_padded() -> None:
    """4,096 rows over 6 ranks: the longest block has 683, and every rank sends so many."""
    network = full()
    tensor = next(tensor for tensor in network.tensors if tensor.name == "fc6.weight")
    layout = Layout(1, 3, 2)
    assert {len(owned_rows(tensor, Place(layout, rank))) for rank in range(6)} == {682, 683}
    assert elements(2, 3)["fc7"] == 683 * 5


def test_batch_norm_settles_once_a_step() -> None:
    """Means, variances and a count of each norm cross the replicas with the gradients."""
    own = [48, 128, 192, 192]  # maps of a column in front of conv2 to conv5
    convolutions = 1_167_040 + 2 * sum(own)
    assert sent(2, 2, "alexnet-bn-2").replica_elements == convolutions + sum(2 * maps + 1 for maps in own)


def test_the_table_of_net_145() -> None:
    rows = {line.split()[0]: line.split() for line in layers_text(full()).splitlines() if line}
    for name, figures in NET_145.items():
        weights, biases, outputs, macs = (f"{figure:,}" for figure in figures)
        after = rows[name].index(outputs, 2)  # the shape stands before
        assert rows[name][after : after + 4] == [outputs, weights, biases, macs]
    assert rows["sum"] == ["sum", "60,954,656", "10,568", "724,406,816"]


def test_the_table_of_its_exchange() -> None:
    text = layout_text(full(), Layout(1, 1, 2), 128, "bf16")
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert rows["conv3"] == ["conv3", "channels", "2", "21,632", "21,632", "86,528"]
    assert rows["sum"] == ["sum", "30,336", "30,336", "121,344"]
    assert "15.5 MB by each rank" in text


@pytest.mark.parametrize("text", ["2", "2x1", "0,1", "2,0", "a,b", "2,1,1", ""])
def test_a_layout_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--layout is .*expected columns,replicas such as 2,1"):
        read_layout(text, full())


def test_a_layout_that_the_network_does_not_have() -> None:
    with pytest.raises(LayoutError, match="'2,3', but the network has 1 column: give 1,3"):
        read_layout("2,3", full("caffenet"))
    with pytest.raises(LayoutError, match=r"fc8.weight has 3 rows"):
        layout_text(full(num_classes=3), read_layout("2,2", full()), 128, "fp32")
    with pytest.raises(ConfigError, match="--exchange is 'fp8', expected one of fp32, bf16, fp16"):
        layout_text(full(), Layout(1, 1, 2), 128, "fp8")


def test_the_command() -> None:
    command = [sys.executable, "-m", "dist_alexnet", "network", "show", "alexnet-2012", "--layout", "2,1"]
    done = subprocess.run([*command, "--exchange", "bf16"], capture_output=True, text=True, check=True)
    assert "724,406,816" in done.stdout
    assert "121,344" in done.stdout
    wrong = subprocess.run([*command[:-1], "3,1"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --layout is '3,1', but the network has 2 columns")
    assert wrong.stdout == ""
