"""Update rules. They work on any tensors: whole parameters, or the flat pieces that ZeRO hands them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from dist_alexnet.config import Optimizer as Settings

MOMENTUM = "momentum_buffer"  # the one state of every rule here, also torch's name for it


class SGD2012(Optimizer):
    """The rule of 2012 (paper, section 5; src/weights.cu):

        v <- momentum * v - weight_decay * lr * w - lr * gradient;   w <- w + v

    The learning rate is inside v, so after a drop of the rate the old, larger updates go on for a while (torch's SGD
    keeps it outside: the two agree while the rate is constant). A group whose lr is 0 is not touched at all.
    """

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if group["lr"] == 0:
                continue
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group)

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if MOMENTUM not in state:
            state[MOMENTUM] = torch.zeros_like(param)
        update = state[MOMENTUM]
        update.mul_(group["momentum"])
        if group["weight_decay"]:
            update.add_(param, alpha=-group["weight_decay"] * group["lr"])
        update.add_(grad, alpha=-group["lr"])
        param.add_(update)


def parameter_groups(
    parameters: Iterable[tuple[nn.Parameter, float, float]], settings: Settings
) -> list[dict[str, Any]]:
    """Groups of (parameter, lr multiplier, decay multiplier) that share both; `lr_multiplier` stays in the group."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, lr, decay in parameters:
        groups.setdefault((lr, decay), []).append(parameter)
    return [
        {
            "params": members,
            "lr": settings.lr * lr,
            "lr_multiplier": lr,
            "weight_decay": settings.weight_decay * decay,
        }
        for (lr, decay), members in groups.items()
    ]


def make_optimizer(groups: list[dict[str, Any]], settings: Settings) -> Optimizer:
    """The rule that the config names, over groups from `parameter_groups`."""
    if settings.name == "sgd-2012":
        return SGD2012(groups, settings.lr, settings.momentum, settings.weight_decay)
    return SGD(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
