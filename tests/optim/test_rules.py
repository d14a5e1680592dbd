"""The rule of 2012 against numbers worked out in plain Python, and against torch's rule."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_alexnet.config import Optimizer as Settings
from dist_alexnet.optim.rules import MOMENTUM, SGD2012, make_optimizer, parameter_groups

GRADIENTS = [0.5, -1.0, 0.25, 2.0, -0.125, 0.0, 1.0, -3.0]
RATES = [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001]


def settings(**values: Any) -> Settings:
    return Settings.model_validate({"lr": 0.1, "weight_decay": 0.2, **values})


def walk(optimizer: torch.optim.Optimizer, weight: Tensor, rates: list[float]) -> list[float]:
    """The weight after each step with the gradients above."""
    path = []
    for rate, gradient in zip(rates, GRADIENTS, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        path.append(weight.detach().view(-1)[0].item())
    return path


def one_weight() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.5], dtype=torch.float64))


def test_the_first_steps_by_hand() -> None:
    """inc = mom * inc - eps * wc * w - eps * grad; w += inc. Worked out on paper for eps 0.1, then 0.01."""
    weight = one_weight()
    path = walk(SGD2012([weight], lr=0.1, momentum=0.9, weight_decay=0.2), weight, RATES)
    # inc = -0.1*0.2*1.5 - 0.1*0.5 = -0.08;  inc = 0.9*-0.08 - 0.02*1.42 + 0.1 = -0.0004
    assert path[0] == pytest.approx(1.42, rel=1e-14)
    assert path[1] == pytest.approx(1.4196, rel=1e-14)
    # inc = 0.9*-0.0004 - 0.02*1.4196 - 0.025 = -0.053752;  then eps 0.01: 0.9*inc - 0.002*1.365848 - 0.02
    assert path[2] == pytest.approx(1.365848, rel=1e-14)
    assert path[3] == pytest.approx(1.365848 - 0.0483768 - 0.002731696 - 0.02, rel=1e-14)


def test_a_table_over_two_drops_of_the_rate() -> None:
    w, inc, table = 1.5, 0.0, []
    for eps, grad in zip(RATES, GRADIENTS, strict=True):
        inc = 0.9 * inc - eps * 0.2 * w - eps * grad
        w += inc
        table.append(w)
    weight = one_weight()
    optimizer = SGD2012([weight], lr=0.1, momentum=0.9, weight_decay=0.2)
    assert walk(optimizer, weight, RATES) == pytest.approx(table, rel=1e-14)
    assert optimizer.state[weight][MOMENTUM].item() == pytest.approx(inc, rel=1e-14)


def test_it_is_torchs_rule_until_the_rate_drops() -> None:
    paths = []
    for name in ("sgd-2012", "sgd"):
        weight = one_weight()
        chosen = settings(name=name)
        optimizer = make_optimizer(parameter_groups([(weight, 1.0, 1.0)], chosen), chosen)
        paths.append(walk(optimizer, weight, RATES))
    ours, theirs = paths
    assert ours[:3] == pytest.approx(theirs[:3], rel=1e-14)
    assert ours[3] != pytest.approx(theirs[3], rel=1e-3)
    # Past the drop the larger updates of before go on: 0.9 of the last one in ours, a tenth of that in torch's.
    assert ours[3] - theirs[3] == pytest.approx(0.9 * (1 - 0.1) * (ours[2] - ours[1]), rel=1e-12)


@pytest.mark.parametrize("name", ["sgd-2012", "sgd"])
def test_the_config_names_the_rule(name: str) -> None:
    chosen = settings(name=name, momentum=0.5, weight_decay=0.0)
    weight = one_weight()
    optimizer = make_optimizer(parameter_groups([(weight, 2.0, 0.0)], chosen), chosen)
    assert isinstance(optimizer, SGD2012) == (name == "sgd-2012")
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["lr"], group["weight_decay"], group["lr_multiplier"]) == (0.5, 0.2, 0.0, 2.0)


def test_nesterov_looks_ahead() -> None:
    chosen = settings(name="sgd", nesterov=True, weight_decay=0)
    weight = one_weight()
    optimizer = make_optimizer(parameter_groups([(weight, 1.0, 1.0)], chosen), chosen)
    assert walk(optimizer, weight, [0.1] * 8)[0] == pytest.approx(1.5 - 0.1 * 1.9 * 0.5, rel=1e-14)


def test_rate_0_freezes_for_decay_and_momentum_too() -> None:
    weight = one_weight()
    optimizer = SGD2012([weight], lr=0.1, momentum=0.9, weight_decay=0.2)
    path = walk(optimizer, weight, [0.1, 0.1, 0.0, 0.0, 0.0, 0.1, 0.1, 0.1])
    assert path[1] == path[2] == path[3] == path[4]
    assert path[5] != path[4]
    frozen = one_weight()
    optimizer = SGD2012([frozen], lr=0.0, momentum=0.9, weight_decay=0.2)
    assert walk(optimizer, frozen, [0.0] * 8) == [1.5] * 8


def test_a_parameter_without_gradient_stays() -> None:
    weight = one_weight()
    optimizer = SGD2012([weight], lr=0.1, momentum=0.9, weight_decay=0.2)
    optimizer.step()
    assert weight.item() == 1.5
    assert not optimizer.state[weight]


def test_the_rule_works_element_by_element() -> None:
    """ZeRO hands it flat pieces: a cut must not change a bit."""
    random = torch.Generator().manual_seed(0)
    values, gradients = (torch.randn(4, 101, generator=random) for _ in range(2))
    whole, pieces = nn.Parameter(values.clone()), [nn.Parameter(p.clone()) for p in values.view(-1).split(37)]
    optimizers = [SGD2012([whole], 0.1, 0.9, 0.2), SGD2012(pieces, 0.1, 0.9, 0.2)]
    for _ in range(3):
        whole.grad = gradients.clone()
        for piece, gradient in zip(pieces, gradients.view(-1).split(37), strict=True):
            piece.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(torch.cat([piece.detach() for piece in pieces]), whole.detach().view(-1))


def test_groups_share_both_multipliers() -> None:
    weights, biases, other = [one_weight() for _ in range(3)], [one_weight() for _ in range(2)], one_weight()
    parameters = [(one, 1.0, 1.0) for one in weights] + [(one, 2.0, 0.0) for one in biases] + [(other, 2.0, 1.0)]
    groups = parameter_groups(parameters[::-1], settings(lr=0.01, weight_decay=0.0005))
    found = {(group["lr_multiplier"], group["weight_decay"]): group for group in groups}
    assert found.keys() == {(1.0, 0.0005), (2.0, 0.0), (2.0, 0.0005)}
    assert {id(one) for one in found[1.0, 0.0005]["params"]} == {id(one) for one in weights}
    assert {id(one) for one in found[2.0, 0.0]["params"]} == {id(one) for one in biases}
    assert {key: group["lr"] for key, group in found.items()} == {key: 0.01 * key[0] for key in found}
