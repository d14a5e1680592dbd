"""The rules against numbers worked out by hand, in plain Python, and by torch's own optimizers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_alexnet.config import Optimizer as Settings
from dist_alexnet.optim.rules import (
    LARS,
    MOMENTUM,
    SGD,
    SGD2012,
    SQUARE,
    AdamW,
    Piece,
    Rule,
    Traits,
    make_optimizer,
    parameter_groups,
)

GRADIENTS = [0.5, -1.0, 0.25, 2.0, -0.125, 0.0, 1.0, -3.0]
RATES = [0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001]


def settings(**values: Any) -> Settings:
    return Settings.model_validate({"lr": 0.1, "weight_decay": 0.2, **values})


def traits(lr: float = 1.0, decay: float = 1.0, **values: Any) -> Traits:
    return Traits(**{"layer": "fc6", "role": "weight", "cut": "group", "vector": False, **values}, lr=lr, decay=decay)


@pytest.mark.parametrize("name", ["sgd-2012", "sgd", "lars", "adamw"])
def test_tells_what_it_adds(name: str) -> None:
    """Of each tensor the change, to the last bit; nothing where the rate is 0, and nothing once nobody asks."""
    weights = [nn.Parameter(torch.randn(5)) for _ in range(3)]
    groups = parameter_groups(
        [(weights[0], traits()), (weights[1], traits(role="bias")), (weights[2], traits(lr=0.0))], settings(name=name)
    )
    rule = make_optimizer(groups, settings(name=name))
    told: list[tuple[Tensor, Tensor]] = []
    rule.tell = lambda weight, change: told.append((weight, change.clone()))
    for _ in range(2):
        before: list[Tensor] = [weight.detach().clone() for weight in weights]
        for parameter in weights:
            parameter.grad = torch.randn(5)
        rule.begin()
        rule.step()
        assert [id(weight) for weight, _ in told] == [id(weight) for weight in weights[:2]]
        for (weight, change), old in zip(told, before, strict=False):
            assert torch.equal(change, weight - old)
            assert change.any()
        told.clear()
    rule.tell = None
    rule.begin()
    rule.step()
    assert not told


def walk(optimizer: torch.optim.Optimizer, weight: Tensor, rates: list[float]) -> list[float]:
    """The weight after each step with the gradients above."""
    path = []
    for rate, gradient in zip(rates, GRADIENTS, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        weight.grad = torch.full_like(weight, gradient)
        if isinstance(optimizer, Rule):
            optimizer.begin()
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
        optimizer = make_optimizer(parameter_groups([(weight, traits())], chosen), chosen)
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
    optimizer = make_optimizer(parameter_groups([(weight, traits(2.0, 0.0))], chosen), chosen)
    assert isinstance(optimizer, SGD2012) == (name == "sgd-2012")
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["lr"], group["weight_decay"], group["lr_multiplier"]) == (0.5, 0.2, 0.0, 2.0)


def test_nesterov_looks_ahead() -> None:
    chosen = settings(name="sgd", nesterov=True, weight_decay=0)
    weight = one_weight()
    optimizer = make_optimizer(parameter_groups([(weight, traits())], chosen), chosen)
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


def test_groups_share_all_their_traits() -> None:
    weights, biases, other = [one_weight() for _ in range(3)], [one_weight() for _ in range(2)], one_weight()
    parameters = [(one, traits()) for one in weights] + [(one, traits(2.0, 0.0)) for one in biases]
    parameters += [(other, traits(2.0, 1.0))]
    groups = parameter_groups(parameters[::-1], settings(lr=0.01, weight_decay=0.0005))
    found = {(group["lr_multiplier"], group["weight_decay"]): group for group in groups}
    assert found.keys() == {(1.0, 0.0005), (2.0, 0.0), (2.0, 0.0005)}
    assert {id(one) for one in found[1.0, 0.0005]["params"]} == {id(one) for one in weights}
    assert {id(one) for one in found[2.0, 0.0]["params"]} == {id(one) for one in biases}
    assert {key: group["lr"] for key, group in found.items()} == {key: 0.01 * key[0] for key in found}


def test_a_group_is_of_one_cut_one_role_and_one_named_layer() -> None:
    """Replicas cut fully connected rows unevenly: in one group with them, ZeRO would cut convolutions unevenly, too."""
    kinds = [traits(layer=layer, role=role, cut=cut, vector=vector) for layer, role, cut, vector in [
        ("conv1", "weight", "column", False),
        ("conv2", "weight", "column", False),
        ("conv1", "bias", "column", True),
        ("fc6", "weight", "group", False),
        ("fc6", "bias", "group", True),
        ("fc7", "weight", "group", False),
    ]]  # fmt: skip
    parameters = [(one_weight(), kind) for kind in kinds]
    groups = parameter_groups(parameters, settings(), frozenset({"fc7"}))
    found = [(group["layer"], group["role"], group["cut"], group["vector"], len(group["params"])) for group in groups]
    assert found == [
        (None, "weight", "column", False, 2),
        (None, "bias", "column", True, 1),
        (None, "weight", "group", False, 1),
        (None, "bias", "group", True, 1),
        ("fc7", "weight", "group", False, 1),
    ]


RULES = [
    {"name": "sgd-2012"},
    {"name": "sgd"},
    {"name": "sgd", "nesterov": True},
    {"name": "lars", "trust": 0.01},
    {"name": "adamw"},
]


def named(chosen: dict[str, Any]) -> str:
    return "-".join(str(value) for value in chosen.values())


@pytest.mark.parametrize("chosen", RULES, ids=named)
def test_nothing_is_touched_at_rate_0_or_in_a_dropped_step(chosen: dict[str, Any]) -> None:
    """Neither the weight nor any state: a frozen layer's momentum stays what it was."""
    weight = nn.Parameter(torch.tensor([[1.5, -0.5]], dtype=torch.float64))
    rule = make_optimizer(parameter_groups([(weight, traits())], settings(**chosen)), settings(**chosen))
    walk(rule, weight, RATES)
    assert rule.updates == len(RATES)
    before = [weight.detach().clone(), *(one.clone() for one in rule.state_of(weight).values())]
    assert all(one.abs().sum() > 0 for one in before)
    walk(rule, weight, [0.0] * len(RATES))
    weight.grad = torch.full_like(weight, math.nan)
    rule.param_groups[0]["lr"] = 0.1
    rule.begin(dropped=True)
    rule.step()
    after = [weight.detach(), *rule.state_of(weight).values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert rule.updates == len(RATES)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_sgd_is_torchs_bit_for_bit(momentum: float, nesterov: bool) -> None:
    ours, theirs = nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.empty(5, 7))
    theirs.data.copy_(ours.data)
    optimizers = [
        SGD([ours], 0.1, momentum, 0.2, nesterov),
        torch.optim.SGD([theirs], 0.1, momentum, weight_decay=0.2, nesterov=nesterov),
    ]
    for rate in RATES:
        gradient = torch.randn(5, 7)
        for optimizer, weight in zip(optimizers, (ours, theirs), strict=True):
            optimizer.param_groups[0]["lr"] = rate
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_adamw_is_torchs() -> None:
    """Over two drops of the rate, with its state; ours counts the steps once."""
    ours, theirs = nn.Parameter(torch.randn(5, 7).double()), nn.Parameter(torch.empty(5, 7).double())
    theirs.data.copy_(ours.data)
    rule = AdamW([ours], 0.1, (0.8, 0.95), 1e-6, 0.2)
    reference = torch.optim.AdamW([theirs], 0.1, (0.8, 0.95), 1e-6, 0.2)
    for rate in RATES:
        gradient = torch.randn(5, 7).double()
        for optimizer, weight in ((rule, ours), (reference, theirs)):
            optimizer.param_groups[0]["lr"] = rate
            weight.grad = gradient.clone()
        rule.begin()
        rule.step()
        reference.step()
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    state = rule.state_of(ours)
    assert torch.allclose(state[MOMENTUM], reference.state[theirs]["exp_avg"], rtol=1e-12, atol=1e-14)
    assert torch.allclose(state[SQUARE], reference.state[theirs]["exp_avg_sq"], rtol=1e-12, atol=1e-14)
    assert all(values.shape == ours.shape for values in rule.state[ours].values())
    assert rule.updates == len(RATES)


def test_adamw_by_hand() -> None:
    """Two steps on one number: lr 0.1, betas 0.5 and 0.75, eps 0, decay 0.2, w 1.5, gradients 0.5 and -1."""
    weight = one_weight()
    rule = AdamW([weight], 0.1, (0.5, 0.75), 0.0, 0.2)
    path = walk(rule, weight, RATES)[:2]
    # 1.5 * 0.98 - 0.1 * 1;  m = 0.125 - 0.5 = -0.375, / 0.75 = -0.5;  s = 0.75 * 0.0625 + 0.25, / (1 - 0.5625)
    assert path[0] == pytest.approx(1.37, rel=1e-14)
    assert path[1] == pytest.approx(1.37 * 0.98 + 0.1 * 0.5 / math.sqrt(0.296875 / 0.4375), rel=1e-14)


def lars_by_hand(weight: Tensor, gradients: list[Tensor], decay: float, trust: float, adapted: bool = True) -> Tensor:
    """One tensor, as NVIDIA's Caffe has it: the rate and the ratio inside the velocity."""
    w, v = weight.clone(), torch.zeros_like(weight)
    for rate, g in zip(RATES, gradients, strict=True):
        ratio = 1.0
        if adapted and w.norm() > 0 and g.norm() > 0:
            ratio = float(trust * w.norm() / (g.norm() + decay * w.norm()))
        v = 0.9 * v + rate * ratio * (g + decay * w)
        w = w - v
    return w


@pytest.mark.parametrize("adapt_vectors", [True, False])
def test_lars_over_two_drops_of_the_rate(adapt_vectors: bool) -> None:
    """Two tensors and a vector in one optimizer, each as alone; the last gradient of one is 0."""
    random = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (2, 5), (6,)]
    start = [torch.randn(shape, generator=random).double() * 10**n for n, shape in enumerate(shapes)]
    gradients = [[torch.randn(shape, generator=random).double() for shape in shapes] for _ in RATES]
    gradients[-1][0].zero_()
    weights = [nn.Parameter(one.clone()) for one in start]
    kinds = [traits(), traits(), traits(decay=0.0, vector=True)]
    chosen = settings(name="lars", trust=0.02, adapt_vectors=adapt_vectors)
    rule = make_optimizer(parameter_groups(zip(weights, kinds, strict=True), chosen), chosen)
    for rate, step in zip(RATES, gradients, strict=True):
        for group in rule.param_groups:
            group["lr"] = rate
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        rule.begin()
        rule.step()
    for number, (weight, kind) in enumerate(zip(weights, kinds, strict=True)):
        own = [step[number] for step in gradients]
        adapted = adapt_vectors or not kind.vector
        expected = lars_by_hand(start[number], own, 0.2 * kind.decay, 0.02, adapted=adapted)
        assert torch.allclose(weight, expected, rtol=1e-12)
        assert not torch.allclose(weight, start[number], rtol=1e-3)


def test_lars_adapts_logical_tensors_in_a_flat_one() -> None:
    """Two tensors in one flat vector, one of them also on another rank: `add_up` brings the rest of its norms."""
    random = torch.Generator().manual_seed(0)
    first, second = torch.randn(7, generator=random).double(), torch.randn(5, generator=random).double()
    g_first, g_second = torch.randn(7, generator=random).double(), torch.randn(5, generator=random).double()
    flat = nn.Parameter(torch.cat([first[:4], second, torch.zeros(3).double()]))  # and ZeRO's padding
    flat.grad = torch.cat([g_first[:4], g_second, torch.zeros(3).double()])
    rule = LARS([flat], 0.1, 0.9, 0.2, 0.02)
    rule.pieces, rule.tensors = {flat: [Piece(0, 0, 4, True), Piece(1, 4, 5, False)]}, 2
    elsewhere = [[first[4:], g_first[4:]], [second, g_second]]  # the second is held twice, and counted there

    def add_up(sums: Tensor) -> None:
        for row, parts in enumerate(elsewhere):
            for column, part in enumerate(parts):
                sums[row, column] += part.square().sum()

    rule.add_up = add_up
    rule.begin()
    rule.step()
    for begin, length, w, g in ((0, 4, first, g_first), (4, 5, second, g_second)):
        ratio = 0.02 * w.norm() / (g.norm() + 0.2 * w.norm())
        expected = (w - 0.1 * ratio * (g + 0.2 * w))[:length]
        assert torch.allclose(flat[begin : begin + length], expected, rtol=1e-12)
    assert torch.equal(flat[9:], torch.zeros(3).double())


def test_lars_norms_of_a_tensor_as_large_as_fc6_are_right_in_fp32() -> None:
    """Added up in fp32 they are 5e-4 off here, and by another amount where ranks cut the tensor."""
    random = torch.Generator().manual_seed(0)
    w, g = (torch.randn(1 << 23, generator=random) for _ in range(2))
    weight = nn.Parameter(w.clone())
    weight.grad = g.clone()
    rule = LARS([weight], 1.0, 0.9, 0.2, 1.0)
    rule.pieces, rule.tensors = {weight: [Piece(0, 0, len(w), True)]}, 1
    rule.add_up = lambda sums: None
    rule.begin()
    rule.step()
    w, g = w.double(), g.double()
    ratio = w.norm() / (g.norm() + 0.2 * w.norm())
    assert torch.allclose(weight.double(), w - ratio * (g + 0.2 * w), rtol=0, atol=2e-6)


@pytest.mark.parametrize("chosen", RULES, ids=named)
def test_multipliers_hold_in_every_rule(chosen: dict[str, Any]) -> None:
    """A tensor with multipliers 2 and 0 moves as one alone under twice the rate without decay."""
    paths = []
    for kind, values in ((traits(2.0, 0.0), {}), (traits(), {"lr": 0.2, "weight_decay": 0.0})):
        weight = nn.Parameter(torch.tensor([[1.5, -0.5]], dtype=torch.float64))
        rule = make_optimizer(parameter_groups([(weight, kind)], settings(**chosen, **values)), settings(**chosen))
        weight.grad = torch.tensor([[0.5, 2.0]], dtype=torch.float64)
        rule.begin()
        rule.step()
        paths.append(weight.detach())
    assert torch.equal(*paths)
