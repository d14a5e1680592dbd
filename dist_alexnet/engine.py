"""The only door to DeepSpeed; it and zero.py read its private attributes (deepspeed is pinned for that).

DeepSpeed sees fp32 parameters, our optimizer, and the model group through an mpu. It averages gradients over the data
axis, cuts optimizer state, gradients or parameters (ZeRO 1, 2, 3), clips, and steps. Between its averaging and its step
stands what it knows nothing of: the sum over replicas, and the loss scale of fp16.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_alexnet.config import Batches, Config, batches_on
from dist_alexnet.deepspeed_json import BUCKET_ELEMENTS, deepspeed_json
from dist_alexnet.environment import tell_deepspeed
from dist_alexnet.optim.rules import LARS, Piece, Rule, Traits, make_optimizer, parameter_groups
from dist_alexnet.optim.scale import LossScale
from dist_alexnet.optim.schedules import Role
from dist_alexnet.parallel.agree import on_every_rank
from dist_alexnet.parallel.buckets import sum_in_buckets
from dist_alexnet.parallel.layout import LogicalTensor, owned_rows
from dist_alexnet.parallel.mesh import Mesh, ModelParallelUnit
from dist_alexnet.zero import LARGEST, Held, Loading, Zero

Kind = Literal["weight", "momentum", "square", "statistic", "gradient", "change"]  # the last two are never kept


@dataclass(frozen=True)
class LearnedTensor:
    """A parameter as the engine needs it: its logical tensor, this rank's rows, and its multipliers."""

    tensor: LogicalTensor  # named <layer>.<part>
    parameter: nn.Parameter
    lr: float
    decay: float

    @property
    def layer(self) -> str:
        return self.tensor.name.rpartition(".")[0]

    @property
    def role(self) -> Role:
        return "bias" if self.tensor.name.endswith(".bias") else "weight"

    @property
    def traits(self) -> Traits:
        """What decides how it is updated."""
        vector = len(self.tensor.shape) == 1 or self.role == "bias"
        return Traits(self.layer, self.role, self.lr, self.decay, self.tensor.cut, vector)


@dataclass(frozen=True)
class Fragment:
    """A contiguous range of a flattened logical tensor that lives on this rank: `values` is a view of live memory."""

    name: str
    kind: Kind
    values: Tensor  # fp32 (elements,)
    offset: int  # of the first element in the flattened whole
    total: int  # elements of the whole


@dataclass(frozen=True)
class Health:
    """What all ranks know of a step before its update."""

    loss: float  # as it is minimised: sum(weight * loss) / B
    gradient_is_finite: bool
    is_finite: bool  # the loss, and the gradient unless a smaller loss scale of fp16 may mend it


class Engine:
    """A module in training under DeepSpeed. A step: forward and backward of each micro-batch, `health`, `step`.

    learned: every parameter. carried: tensors of cut "column" that the module keeps up itself, the same on all replicas
    and data ranks (running statistics); they are saved and loaded as they lie.
    """

    def __init__(
        self,
        module: nn.Module,
        learned: list[LearnedTensor],
        config: Config,
        mesh: Mesh,
        carried: Sequence[tuple[LogicalTensor, Tensor]] = (),
    ) -> None:
        self.learned, self.carried, self.mesh, self.config = learned, list(carried), mesh, config
        self.batches: Batches = batches_on(config, mesh.layout.world_size)
        self.loss_scale = LossScale() if config.precision == "fp16" else None
        self.dropped = False  # whether the last step was; all ranks agree
        self._loss_sum: Tensor | None = None  # of the step's micro-batches so far
        self._gradients: list[Tensor] = []  # of a step that has its `health`, and not its update
        parameters = [(one.parameter, one.traits) for one in learned]
        groups = parameter_groups(parameters, config.optimizer, config.schedule.named_layers)
        self._rule: Rule = make_optimizer(groups, config.optimizer)
        settings = deepspeed_json(config, mesh.layout.world_size)
        self._engine = _initialize(module, self._rule, settings, mesh)
        self._zero = Zero(self._engine.optimizer, self._rule, self.stage)
        for owner in self._zero.owners():  # before the first step, so that it can be saved and loaded at any time
            self._rule.state_of(owner)
        if isinstance(self._rule, LARS):
            self._join_norms(self._rule)

    @property
    def stage(self) -> int:
        return self.config.parallel.zero_stage

    def set_rates(self, rate: Callable[[str | None, Role, float], float]) -> None:
        """Set the learning rates: `rate(layer, role, the network's multiplier)`; layer None: no phase names it."""
        for group in self._rule.param_groups:
            group["lr"] = rate(group["layer"], group["role"], group["lr_multiplier"])

    def forward(self, *inputs: Tensor, **settings: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The module's forward, through DeepSpeed's hooks."""
        outputs: tuple[Tensor, Tensor, Tensor] = self._engine(*inputs, **settings)
        return outputs

    def backward(self, weighted_loss_sum: Tensor) -> None:
        """Backward of one micro-batch's sum of weighted losses.

        DeepSpeed divides by the accumulation and averages over the data axis; the loss is divided by the constant
        global batch, so both factors are given back here.
        """
        loss = weighted_loss_sum.detach()
        self._loss_sum = loss if self._loss_sum is None else self._loss_sum + loss
        scale = self.batches.data_ranks * self.batches.accumulation / self.config.data.batch_size
        if self.loss_scale is not None:
            scale *= self.loss_scale.scale
        self._engine.backward(weighted_loss_sum * scale)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    def health(self) -> Health:
        """Of the step whose last micro-batch is through, before its update. All ranks call it, and get the same.

        One small all-reduce, and the one time in a step that the host waits for the device.
        """
        self._gradients = self._finished_gradients()
        assert self._loss_sum is not None
        # Both are NaN where an element is; a tenth of the time of isfinite() on all of them.
        extremes = [value for part in self._gradients if part.numel() for value in part.aminmax()]
        sums = torch.zeros(2, dtype=torch.float64, device=self._loss_sum.device)
        if extremes:
            sums[0] = ~torch.stack(extremes).abs().le(LARGEST).all()
        if self.mesh.place.model_rank == 0:  # every rank of a model group has the same loss
            sums[1] = self._loss_sum
        dist.all_reduce(sums)
        bad_ranks, loss = sums.tolist()
        self._loss_sum = None
        scale_may_mend = self.loss_scale is not None and not self.loss_scale.is_smallest
        is_finite = math.isfinite(loss) and (not bad_ranks or scale_may_mend)
        return Health(loss / self.config.data.batch_size, not bad_ranks, is_finite)

    def step(self, health: Health, leave_out: bool = False) -> None:
        """The update, or none: with `leave_out`, and where fp16 drops it and lowers its scale. After `health`."""
        self.dropped = leave_out or not health.gradient_is_finite
        if self.dropped:
            # At 0 DeepSpeed finds nothing to drop by itself, which it does in some ZeRO stages and not in others.
            for gradient in self._gradients:
                gradient.zero_()
        self._gradients = []
        self._rule.begin(dropped=self.dropped)
        self._engine.step()
        if self.loss_scale is not None and not leave_out:
            self.loss_scale.settle(self.dropped)

    def not_finite(self) -> list[LearnedTensor]:
        """Whose gradient is not finite on some rank, in the network's order; between `health` and `step`.

        All ranks call it. Slow.
        """
        own = [one.parameter for one in self.learned]

        def found() -> list[int]:
            return [n for n, _, values in self._zero.own_gradients(own) if not values.abs().le(LARGEST).all()]

        numbers = on_every_rank(found)
        return [self.learned[number] for number in sorted(set().union(*numbers))]

    def before_reducing(self, tell: Callable[[], None]) -> None:
        """Call `tell` each time DeepSpeed has computed a micro-batch's gradients and begins what it does with them."""
        epilogue = self._engine._backward_epilogue

        def told() -> None:
            tell()
            epilogue()

        self._engine._backward_epilogue = told

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    def fragments(self) -> Iterator[Fragment]:
        """Every range of weights, of the rule's state and of carried tensors that lives here, at any ZeRO stage."""
        for one in self.learned:
            held = self._zero.place(one.parameter)
            if held is None:
                continue
            yield self._fragment(one, "weight", held.of(held.owner), held)
            for kind, values in self._rule.state_of(held.owner).items():
                yield self._fragment(one, kind, held.of(values), held)
        for tensor, values in self.carried:
            offset = owned_rows(tensor, self.mesh.place).start * tensor.row_elements
            yield Fragment(tensor.name, "statistic", values.detach().view(-1), offset, tensor.elements)

    def fragments_to_save(self) -> Iterator[Fragment]:
        """The fragments that this rank writes: over all ranks, each element of each tensor exactly once."""
        return self._counted_once(self.fragments())

    def gradients(self) -> Iterator[Fragment]:
        """Of the whole batch, unscaled and not clipped yet, between `health` and `step`; shared out as for a save."""
        return self._counted_once(
            self._fragment(self.learned[number], "gradient", values, held)
            for number, held, values in self._zero.own_gradients([one.parameter for one in self.learned])
        )

    @contextmanager
    def telling(self, tell: Callable[[Fragment], None]) -> Iterator[None]:
        """Every `step` inside tells what it adds to the weights; shared out as for a save. Takes memory for a tensor.

        A tensor whose rate is 0, and all of a step that is dropped, are not told of.
        """

        def changed(owner: Tensor, change: Tensor) -> None:
            for one in self.learned:
                held = self._zero.place(one.parameter)
                if held is not None and held.owner is owner:
                    for part in self._counted_once([self._fragment(one, "change", held.of(change), held)]):
                        tell(part)

        self._rule.tell = changed
        try:
            yield
        finally:
            self._rule.tell = None

    def _counted_once(self, fragments: Iterable[Fragment]) -> Iterator[Fragment]:
        """What this rank answers for, of fragments of which some lie on several ranks."""
        layout, place = self.mesh.layout, self.mesh.place
        cuts = {tensor.name: tensor.cut for tensor in self._tensors()}
        for fragment in fragments:
            if cuts[fragment.name] == "column" and place.replica > 0:
                continue  # convolutions are the same on all replicas
            whole = self.stage == 0 or fragment.kind == "statistic"  # the rest ZeRO has cut already
            copies, copy = (layout.data, place.data_rank) if whole else (1, 0)
            length = fragment.values.numel()
            start, stop = copy * length // copies, (copy + 1) * length // copies
            if stop > start:
                yield Fragment(
                    fragment.name, fragment.kind, fragment.values[start:stop], fragment.offset + start, fragment.total
                )

    def _fragment(self, one: LearnedTensor, kind: Kind, values: Tensor, held: Held) -> Fragment:
        offset = owned_rows(one.tensor, self.mesh.place).start * one.tensor.row_elements + held.start
        return Fragment(one.tensor.name, kind, values, offset, one.tensor.elements)

    def is_finite(self) -> bool:
        """Whether every weight is, on every rank. All ranks call it."""
        kept = [part.values.isfinite().all() for part in self.fragments() if part.kind == "weight"]
        device = next(self._engine.module.parameters()).device
        finite = torch.stack(kept).all().float() if kept else torch.ones((), device=device)
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        return bool(finite)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the fragments, as plain values, the same on all ranks."""
        scale = None if self.loss_scale is None else self.loss_scale.state()
        return {"updates": self._rule.updates, "loss_scale": scale}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave; a run that was not in fp16 so far starts with a scale of its own."""
        self._rule.updates = int(state["updates"])
        if self.loss_scale is not None and state["loss_scale"] is not None:
            self.loss_scale.restore(state["loss_scale"])

    def start_over(self, initial: Callable[[LogicalTensor], Tensor]) -> None:
        """As if nothing had been trained. `initial` gives this rank's rows of a learned or carried tensor."""
        tensors = {tensor.name: tensor for tensor in self._tensors()}
        with self.loading():
            for part in self.fragments():
                if part.kind in ("weight", "statistic"):
                    tensor = tensors[part.name]
                    start = part.offset - owned_rows(tensor, self.mesh.place).start * tensor.row_elements
                    part.values.copy_(initial(tensor).detach().view(-1).narrow(0, start, part.values.numel()))
                else:
                    part.values.zero_()
        self._rule.updates = 0
        if self.loss_scale is not None:
            self.loss_scale = LossScale()

    def loading(self) -> Loading:
        """Context in which the fragments' values may be overwritten; afterwards the live weights follow them."""
        return Loading(self._engine.optimizer, self.stage)

    def _tensors(self) -> list[LogicalTensor]:
        return [one.tensor for one in self.learned] + [tensor for tensor, _ in self.carried]

    def _finished_gradients(self) -> list[Tensor]:
        """This rank's part of the averaged gradients of a step, summed and unscaled as DeepSpeed takes their norm.

        Replicas share a model group's images, so what they hold in common has its gradient in parts: they are summed
        once a step, after the cut over the data ranks. That is right because a sum of averages is the average of sums,
        and because the group of such a tensor holds none that replicas cut differently, so ZeRO cuts it alike on them.
        """
        gradients = list(self._zero.gradients())
        if self.mesh.layout.replicas > 1:
            shared = [gradient for group, gradient in gradients if group["cut"] == "column"]
            sum_in_buckets(shared, self.mesh.replica, BUCKET_ELEMENTS)
        finished = [gradient for _, gradient in gradients]
        if self.loss_scale is not None:
            for gradient in finished:
                gradient.mul_(1 / self.loss_scale.scale)
        return finished

    def _join_norms(self, rule: LARS) -> None:
        """Tell LARS of which logical tensors its flat tensors consist, and over which ranks these lie."""
        layout, place = self.mesh.layout, self.mesh.place
        rule.pieces = {owner: [] for owner in self._zero.owners()}
        rule.tensors = len(self.learned)
        for number, one in enumerate(self.learned):
            held = self._zero.place(one.parameter)
            if held is not None:
                counts = one.tensor.cut == "group" or place.replica == 0  # a convolution is the same on all replicas
                rule.pieces[held.owner].append(Piece(number, held.begin, held.length, counts))
        # In stage 0 each data rank holds all of the model group's tensors; in the others they share them.
        if self.stage > 0 and layout.data > 1:
            rule.add_up = dist.all_reduce
        elif layout.group_ranks > 1:
            rule.add_up = lambda sums: dist.all_reduce(sums, group=self.mesh.model)
        else:
            rule.add_up = lambda sums: None


def _initialize(module: nn.Module, optimizer: Any, settings: dict[str, Any], mesh: Mesh) -> Any:
    tell_deepspeed(next(module.parameters()).device.type)
    # DeepSpeed 0.19.8 calls collectives by names that newer torch renames: nothing a user could do about it.
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*is deprecated", FutureWarning)
    import deepspeed  # a second at import: only who trains pays
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import groups

    if get_accelerator().device_name() == "cpu":
        # Or DeepSpeed compiles a communication operator at start that training never uses; without a compiler it
        # would not start at all, and a compile that was killed leaves a lock on which later starts hang.
        deepspeed.ops.__dict__["__compatible_ops__"] = {}
    groups.mpu = None  # of an engine before this one in the same process
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=settings, mpu=ModelParallelUnit(mesh), dist_init_required=False
    )
    return engine
