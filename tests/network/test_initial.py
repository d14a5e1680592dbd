"""Initial values: the deviations of 2012, at any size, the same however they are drawn."""

import itertools
from statistics import NormalDist

import pytest
import torch

from dist_alexnet.network import initial
from dist_alexnet.network.build import ColumnNetwork
from dist_alexnet.network.initial import normal_rows
from dist_alexnet.network.sizes import Network, network_for
from dist_alexnet.network.spec import load_spec
from dist_alexnet.parallel.layout import LogicalTensor
from dist_alexnet.parallel.mesh import Mesh
from tests.network.plain import word

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
DEVIATIONS = {
    "alexnet-2012": dict(zip(LAYERS, (0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01), strict=True)),
    "alexnet-2012-paper": dict.fromkeys(LAYERS, 0.01),
}
BIASES = dict(zip(LAYERS, (0, 1, 0, 1, 1, 1, 1, 0), strict=True))
# Fan-in at full size over fan-in at width 1/4 on 64 pixels, where pool5 leaves 1 x 1 of 6 x 6.
NARROWER = dict(zip(LAYERS, (1, 4, 4, 4, 4, 144, 4, 4), strict=True))


def deviations(network: Network) -> dict[str, float]:
    return {step.weight.tensor.name.split(".")[0]: step.weight.initial.size for step in network.steps if step.weight}


def values(network: Network, layer: str, rows: int) -> torch.Tensor:
    step = next(step for step in network.steps if step.weight and step.weight.tensor.name == f"{layer}.weight")
    assert step.weight is not None
    return normal_rows(0, step.weight.tensor, range(rows), step.weight.initial.size)


@pytest.mark.parametrize("preset", sorted(DEVIATIONS))
def test_deviations_at_full_size_are_those_of_2012(preset: str) -> None:
    assert deviations(network_for(load_spec(preset), num_classes=1000)) == pytest.approx(DEVIATIONS[preset])


@pytest.mark.parametrize("preset", sorted(DEVIATIONS))
def test_a_smaller_net_starts_wider(preset: str) -> None:
    """By sqrt(declared fan-in / its fan-in), so that signals keep their size."""
    small = network_for(load_spec(preset), num_classes=10, width=0.25, image_size=64)
    assert deviations(small) == pytest.approx({k: sd * NARROWER[k] ** 0.5 for k, sd in DEVIATIONS[preset].items()})


def test_values_have_these_deviations() -> None:
    full = network_for(load_spec("alexnet-2012"), num_classes=1000)
    small = network_for(load_spec("alexnet-2012"), num_classes=10, width=0.25, image_size=64)
    for network, layer, rows, sd in (
        (full, "conv3", 96, 0.03),
        (full, "fc6", 16, 0.01),
        (full, "fc8", 40, 0.01),
        (full, "conv1", 96, 0.01),
        (small, "conv3", 96, 0.06),
        (small, "fc6", 1024, 0.12),
    ):
        drawn = values(network, layer, rows)
        assert drawn.dtype == torch.float32
        assert drawn.std().item() == pytest.approx(sd, rel=0.02)
        assert abs(drawn.mean().item()) < 5 * sd / drawn.numel() ** 0.5
        assert ((drawn.abs() > 2 * sd).double().mean() / 0.0455).item() == pytest.approx(1, abs=0.06)


def test_a_value_is_the_inverse_normal_at_the_hash() -> None:
    tensor = LogicalTensor("fc7.weight", (9, 4, 5), "group")
    drawn = normal_rows(-3, tensor, range(2, 9), 0.5)
    assert drawn.shape == (7, 4, 5)
    for row in range(2, 9):
        for unit in range(20):
            # Rows stand where positions stand elsewhere, elements of a row where units do.
            fraction = ((word(-3 % 2**64, "init/fc7.weight", row, unit) >> 12) + 0.5) / 2**52
            expected = NormalDist(0, 0.5).inv_cdf(fraction)
            assert drawn[row - 2].view(-1)[unit].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("chunk_elements", [1, 50, 1 << 22])
def test_rows_drawn_in_parts_are_rows_drawn_whole(monkeypatch: pytest.MonkeyPatch, chunk_elements: int) -> None:
    tensor = LogicalTensor("conv4.weight", (23, 3, 3, 3), "column")
    whole = normal_rows(1, tensor, range(23), 0.03)
    monkeypatch.setattr(initial, "CHUNK_ELEMENTS", chunk_elements)
    for cuts in ((0, 23), (0, 12, 23), (0, 1, 7, 8, 22, 23)):
        parts = [normal_rows(1, tensor, range(a, b), 0.03) for a, b in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(parts), whole)


def test_tensors_and_seeds_have_values_of_their_own() -> None:
    drawn = [
        normal_rows(seed, LogicalTensor(name, (8, 50), "group"), range(8), 1.0).view(-1)
        for seed, name in ((0, "fc6.weight"), (1, "fc6.weight"), (0, "fc7.weight"))
    ]
    correlation = torch.corrcoef(torch.stack(drawn))
    assert (correlation - torch.eye(3)).abs().max() < 0.2


@pytest.mark.parametrize("preset", sorted(DEVIATIONS))
def test_the_module_starts_with_them(alone: Mesh, preset: str) -> None:
    network = network_for(load_spec(preset), num_classes=10, width=0.25, image_size=64)
    module = ColumnNetwork(network, alone, seed=0)
    for tensor in network.tensors:
        layer, kind = tensor.name.split(".")
        parameter = module.parameter_of(tensor)
        assert parameter.shape == tensor.shape
        assert parameter.dtype == torch.float32
        if kind == "bias":
            assert (parameter == BIASES[layer]).all(), tensor.name
        else:
            assert torch.equal(parameter, values(network, layer, tensor.shape[0])), tensor.name
    assert sum(parameter.numel() for parameter in module.parameters()) == network.parameters
