"""The module on one rank is AlexNet: loss and every gradient, against a plain implementation in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dist_alexnet.network import build
from dist_alexnet.network.build import ColumnNetwork
from dist_alexnet.network.sizes import Learned, network_for
from dist_alexnet.network.spec import load_spec
from dist_alexnet.parallel.mesh import Mesh
from tests.network.plain import FORWARD, mask

PRESETS = sorted(FORWARD)
SEED = 7
CLASSES = 11
POSITIONS = [3, 10**12 + 1, 0]


def made(preset: str, mesh: Mesh, **size: float) -> ColumnNetwork:
    return ColumnNetwork(network_for(load_spec(preset), **size), mesh, SEED).double()  # type: ignore[arg-type]


def whole(module: ColumnNetwork) -> dict[str, Tensor]:
    return {one.name: module.parameter_of(one).detach().clone().requires_grad_() for one in module.network.tensors}


def pictures(images: int, side: int) -> Tensor:
    """Smooth pictures of the range of pixels minus mean."""
    random = torch.Generator().manual_seed(5)
    coarse = torch.rand(images, 3, 9, 9, generator=random, dtype=torch.float64) * 255 - 120
    return F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)


def apart(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("side", [64, 95])
@pytest.mark.parametrize("preset", PRESETS)
def test_loss_and_all_gradients(alone: Mesh, preset: str, side: int, mode: str) -> None:
    module = made(preset, alone, num_classes=CLASSES, width=0.25, image_size=side, dropout=0.4).train(mode == "train")
    x, label = pictures(3, side), torch.tensor([10, 0, 4])
    weight = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    loss_B, ahead_B, weight_B = module(x, label, weight, torch.tensor(POSITIONS))
    (loss_B * weight_B).sum().backward()

    parameters = whole(module)
    units = parameters["fc6.bias"].shape[0]
    drops: list[Tensor | float] = [0.6, 0.6]
    if mode == "train":
        drops = [mask(SEED, layer, 0.4, POSITIONS, units) for layer in ("drop6", "drop7")]
    logits = FORWARD[preset](parameters, x, *drops)
    expected = F.cross_entropy(logits, label, reduction="none")
    (expected * weight).sum().backward()

    assert torch.equal(weight_B, weight)
    assert apart(loss_B, expected) <= 1e-9
    true = logits.gather(1, label[:, None])
    assert ahead_B.tolist() == (logits > true).sum(1).tolist()
    assert len(parameters) == 16
    for one in module.network.tensors:
        gradient, theirs = module.parameter_of(one).grad, parameters[one.name].grad
        assert gradient is not None
        assert theirs is not None
        assert theirs.norm() > 0
        assert apart(gradient, theirs) <= 1e-9, one.name


@pytest.mark.parametrize("preset", PRESETS)
def test_logits_at_full_size(alone: Mesh, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 classes, 224 pixels, full width. Drawing by hash would take most of a minute: torch draws instead."""

    def drawn(seed: int, learned: Learned, rows: range) -> Tensor:
        random = torch.Generator().manual_seed(len(rows))
        values = torch.randn(len(rows), *learned.tensor.shape[1:], generator=random)
        size = learned.initial.size
        return torch.full_like(values, size) if learned.initial.kind == "constant" else values * size

    monkeypatch.setattr(build, "initial_rows", drawn)
    module = made(preset, alone, num_classes=1000).eval()
    x, position = pictures(1, 224), torch.tensor([0])
    with torch.no_grad():
        logits, first_class = module.logits(x, position, position)
        expected = FORWARD[preset]({one.name: module.parameter_of(one) for one in module.network.tensors}, x, 0.5, 0.5)
    assert first_class == 0
    assert logits.shape == (1, 1000)
    assert apart(logits, expected) <= 1e-9


def test_masks_follow_the_picture_and_not_its_place_in_the_batch(alone: Mesh) -> None:
    module = made("alexnet-2012", alone, num_classes=CLASSES, width=0.25, image_size=64)
    x, position = pictures(3, 64), torch.tensor(POSITIONS)
    together, _ = module.logits(x, position, position)
    turned = torch.tensor([2, 0, 1])
    elsewhere, _ = module.logits(x[turned], position[turned], position[turned])
    assert torch.allclose(elsewhere, together[turned], rtol=1e-12)
    one, _ = module.logits(x[1:2], position[1:2], position[1:2])
    assert torch.allclose(one, together[1:2], rtol=1e-12)
    other, _ = module.logits(x, position + 1, position + 1)
    assert not torch.allclose(other, together, rtol=1e-3)


def test_ties_fall_to_the_lower_class_and_nan_is_wrong(alone: Mesh) -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0], [0.0, torch.nan, 1.0, 2.0]])
    _, ahead = build.cross_entropy(logits, torch.tensor([2, 1, 1]), 0, alone)
    assert ahead.tolist() == [1, 1, 4]
