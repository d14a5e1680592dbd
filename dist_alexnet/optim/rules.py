"""Update rules. They work on any tensors: whole parameters, or the flat pieces that ZeRO hands them.

Written here and not taken from torch, so that in every rule a rate of 0 touches nothing, a dropped step touches
nothing, and the state is made of tensors alone, element by element beside the weights.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dist_alexnet.config import Optimizer as Settings
from dist_alexnet.optim.norm import sum_of_squares
from dist_alexnet.optim.schedules import Role

MOMENTUM: Literal["momentum"] = "momentum"
SQUARE: Literal["square"] = "square"  # running mean of squared gradients
State = Literal["momentum", "square"]


@dataclass(frozen=True)
class Traits:
    """What decides how a parameter is updated: parameters that share all of it form one group."""

    layer: str
    role: Role
    lr: float  # multiplier, of the network
    decay: float  # multiplier, of the network
    cut: str  # ranks of a model group that share one cut hold pieces of the same sizes
    vector: bool  # one dimension: biases, scales and shifts


class Rule(Optimizer):
    """What all rules share. `begin` opens a step; ZeRO then calls `step` once for each group, or once for all."""

    states: ClassVar[tuple[State, ...]] = (MOMENTUM,)
    updates = 0  # steps that changed something
    dropped = False
    tell: Callable[[Tensor, Tensor], None] | None = None  # is told of each tensor that changed, and by how much

    def begin(self, *, dropped: bool = False) -> None:
        """Open an optimizer step. A dropped one leaves weights, state and count as they are."""
        self.dropped = dropped
        if not dropped and any(group["lr"] for group in self.param_groups):
            self.updates += 1

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.dropped:
            return
        groups = [group for group in self.param_groups if group["lr"]]  # 2012: a rate of 0 is "do not touch"
        self._look_at(groups)
        for group in groups:
            for param in group["params"]:
                if param.grad is not None:
                    before = None if self.tell is None else param.clone()
                    self._update(param, param.grad, group)
                    if self.tell is not None and before is not None:
                        self.tell(param, torch.sub(param, before, out=before))

    def state_of(self, param: Tensor) -> dict[State, Tensor]:
        """The state of a tensor, made of zeros where it is not there yet."""
        state: dict[State, Tensor] = self.state[param]
        for kind in self.states:
            if kind not in state:
                state[kind] = torch.zeros_like(param)
        return state

    def _look_at(self, groups: list[dict[str, Any]]) -> None:
        """What a rule has to know of all tensors before it changes the first."""

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError


class SGD2012(Rule):
    """The rule of 2012 (paper, section 5; src/weights.cu):

        v <- momentum * v - weight_decay * lr * w - lr * gradient;   w <- w + v

    The learning rate is inside v, so after a drop of the rate the old, larger updates go on for a while (torch's SGD
    keeps it outside: the two agree while the rate is constant).
    """

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        update = self.state_of(param)[MOMENTUM]
        update.mul_(group["momentum"])
        if group["weight_decay"]:
            update.add_(param, alpha=-group["weight_decay"] * group["lr"])
        update.add_(grad, alpha=-group["lr"])
        param.add_(update)


class SGD(Rule):
    """torch's rule, the learning rate outside v:

    g <- gradient + weight_decay * w;  v <- momentum * v + g;  w <- w - lr * v   (nesterov: w - lr * (g + momentum * v))
    """

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float, nesterov: bool = False) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, defaults)

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            grad = grad.add(param, alpha=group["weight_decay"])
        velocity = self.state_of(param)[MOMENTUM]
        velocity.mul_(group["momentum"]).add_(grad)
        direction = grad.add(velocity, alpha=group["momentum"]) if group["nesterov"] else velocity
        param.add_(direction, alpha=-group["lr"])


@dataclass(frozen=True)
class Piece:
    """A range of a flat tensor that a rule updates, and the logical tensor it is of."""

    tensor: int  # number of the logical tensor
    begin: int
    length: int
    counts: bool  # in norms: of the ranks that hold the same elements only one does


class LARS(Rule):
    """Layer-wise adaptive rates (You, Gitman, Ginsburg, arXiv 1708.03888), the rate inside v as in NVIDIA's Caffe:

        ratio = trust * |w| / (|g| + weight_decay * |w|);  v <- momentum * v + lr * ratio * (g + weight_decay * w)
        w <- w - v

    |w| and |g| are of the logical tensor, whatever part of it lies here; the ratio is 1 where one of them is 0 (as
    there) and, without `adapt_vectors`, in groups of vectors (biases, scales and shifts).

    `pieces` says of what logical tensors a tensor consists, `add_up` sums over all ranks between them; without them
    each tensor is a logical one and whole.
    """

    def __init__(
        self, params: Any, lr: float, momentum: float, weight_decay: float, trust: float, adapt_vectors: bool = True
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "vector": False})
        self.trust, self.adapt_vectors = trust, adapt_vectors
        self.pieces: dict[Tensor, list[Piece]] = {}
        self.tensors = 0
        self.add_up: Callable[[Tensor], None] = lambda sums: None
        for group in self.param_groups:
            for param in group["params"]:
                self.pieces[param] = [Piece(self.tensors, 0, param.numel(), True)]
                self.tensors += 1
        self._ratios: list[Tensor] = []

    def _look_at(self, groups: list[dict[str, Any]]) -> None:
        """The ratio of every tensor in these groups, from one sum over the ranks."""
        adapted = [
            (param, group["weight_decay"]) for group in groups if self._adapts(group) for param in group["params"]
        ]
        if not adapted:
            return
        first = adapted[0][0]
        sums = torch.zeros(self.tensors, 2, dtype=torch.float64, device=first.device)  # of w^2, of g^2
        decay = torch.zeros(self.tensors, dtype=torch.float64)
        for param, weight_decay in adapted:
            for piece in self.pieces[param]:
                decay[piece.tensor] = weight_decay
                if piece.counts and param.grad is not None:
                    for column, values in enumerate((param, param.grad)):
                        own = values.reshape(-1).narrow(0, piece.begin, piece.length)
                        sums[piece.tensor, column] += sum_of_squares(own)
        self.add_up(sums)
        w, g = sums.sqrt().unbind(1)
        ratios = torch.where((w > 0) & (g > 0), self.trust * w / (g + decay.to(w.device) * w), torch.ones_like(w))
        self._ratios = list(ratios.to(first.dtype))

    def _adapts(self, group: dict[str, Any]) -> bool:
        return self.adapt_vectors or not group["vector"]

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        velocity = self.state_of(param)[MOMENTUM]
        velocity.mul_(group["momentum"])
        direction = grad.add(param, alpha=group["weight_decay"])
        if not self._adapts(group):
            velocity.add_(direction, alpha=group["lr"])
        else:
            flat, into = direction.view(-1), velocity.view(-1)
            for piece in self.pieces[param]:
                own = flat.narrow(0, piece.begin, piece.length).mul_(self._ratios[piece.tensor])
                into.narrow(0, piece.begin, piece.length).add_(own, alpha=group["lr"])
        param.sub_(velocity)


class AdamW(Rule):
    """Adam with decoupled decay (Loshchilov, Hutter, arXiv 1711.05101), as in torch:

        w <- w - lr * weight_decay * w;  m <- b1 m + (1 - b1) g;  s <- b2 s + (1 - b2) g^2
        w <- w - lr * (m / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + eps)

    t is `updates`, one number for the whole run, in place of torch's tensor beside each parameter.
    """

    states: ClassVar[tuple[State, ...]] = (MOMENTUM, SQUARE)

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        first, second = group["betas"]
        state = self.state_of(param)
        param.mul_(1 - group["lr"] * group["weight_decay"])
        momentum = state[MOMENTUM].lerp_(grad, 1 - first)
        square = state[SQUARE].mul_(second).addcmul_(grad, grad, value=1 - second)
        width = (square / (1 - second**self.updates)).sqrt_().add_(group["eps"])
        param.addcdiv_(momentum, width, value=-group["lr"] / (1 - first**self.updates))


def parameter_groups(
    parameters: Iterable[tuple[nn.Parameter, Traits]], settings: Settings, named_layers: frozenset[str] = frozenset()
) -> list[dict[str, Any]]:
    """Groups of parameters that share their traits; of a layer's name, only where it is one of `named_layers`.

    Traits stay in the group as `layer` (None: any), `role`, `lr_multiplier`, `cut` and `vector`. Tensors that replicas
    cut differently are never in one group: ZeRO cuts a group over the data ranks as one, and where replicas hold the
    same tensors their cuts must be the same.
    """
    groups: dict[tuple[Any, ...], list[nn.Parameter]] = {}
    for parameter, traits in parameters:
        layer = traits.layer if traits.layer in named_layers else None
        key = (layer, traits.role, traits.lr, traits.decay, traits.cut, traits.vector)
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": members,
            "lr": settings.lr * lr,
            "lr_multiplier": lr,
            "weight_decay": settings.weight_decay * decay,
            "layer": layer,
            "role": role,
            "cut": cut,
            "vector": vector,
        }
        for (layer, role, lr, decay, cut, vector), members in groups.items()
    ]


def make_optimizer(groups: list[dict[str, Any]], settings: Settings) -> Rule:
    """The rule that the config names, over groups from `parameter_groups`."""
    lr, momentum, decay = settings.lr, settings.momentum, settings.weight_decay
    if settings.name == "sgd-2012":
        return SGD2012(groups, lr, momentum, decay)
    if settings.name == "lars":
        return LARS(groups, lr, momentum, decay, settings.trust, settings.adapt_vectors)
    if settings.name == "adamw":
        return AdamW(groups, lr, settings.betas, settings.eps, decay)
    return SGD(groups, lr, momentum, decay, settings.nesterov)
