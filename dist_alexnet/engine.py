"""The only door to DeepSpeed, and the only reader of its private attributes (deepspeed is pinned for that).

DeepSpeed sees fp32 parameters, our optimizer, and the model group through an mpu. It averages gradients over the data
axis, cuts optimizer state, gradients or parameters (ZeRO 1, 2, 3), clips, and steps.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_alexnet.config import Batches, Config, batches_on
from dist_alexnet.deepspeed_json import deepspeed_json
from dist_alexnet.environment import tell_deepspeed
from dist_alexnet.optim.rules import MOMENTUM, make_optimizer, parameter_groups
from dist_alexnet.parallel.layout import LogicalTensor, owned_rows
from dist_alexnet.parallel.mesh import Mesh, ModelParallelUnit

Kind = Literal["weight", "momentum"]


@dataclass(frozen=True)
class LearnedTensor:
    """A parameter as the engine needs it: its logical tensor, this rank's rows, and its multipliers."""

    tensor: LogicalTensor
    parameter: nn.Parameter
    lr: float
    decay: float


@dataclass(frozen=True)
class Fragment:
    """A contiguous range of a flattened logical tensor that lives on this rank: `values` is a view of live memory."""

    name: str
    kind: Kind
    values: Tensor  # fp32 (elements,)
    offset: int  # of the first element in the flattened whole
    total: int  # elements of the whole


class Engine:
    """A module in training under DeepSpeed."""

    def __init__(self, module: nn.Module, learned: list[LearnedTensor], config: Config, mesh: Mesh) -> None:
        self.learned, self.mesh, self.config = learned, mesh, config
        self.batches: Batches = batches_on(config, mesh.layout.world_size)
        groups = parameter_groups(((one.parameter, one.lr, one.decay) for one in learned), config.optimizer)
        self._engine = _initialize(
            module, make_optimizer(groups, config.optimizer), deepspeed_json(config, mesh.layout.world_size), mesh
        )
        self._make_momentum()

    @property
    def stage(self) -> int:
        return self.config.parallel.zero_stage

    def set_rate(self, lr: float) -> None:
        """Set the learning rate; every group takes its multiple of it."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr * group["lr_multiplier"]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The module's forward, through DeepSpeed's hooks."""
        outputs: tuple[Tensor, Tensor, Tensor] = self._engine(*inputs)
        return outputs

    def backward(self, weighted_loss_sum: Tensor) -> None:
        """Backward of one micro-batch's sum of weighted losses, and the step after the last micro-batch.

        DeepSpeed divides by the accumulation and averages over the data axis; the loss is divided by the constant
        global batch, so both factors are given back here.
        """
        scale = self.batches.data_ranks * self.batches.accumulation / self.config.data.batch_size
        self._engine.backward(weighted_loss_sum * scale)
        self._engine.step()

    def train(self, mode: bool = True) -> None:
        self._engine.train(mode)

    def fragments(self) -> Iterator[Fragment]:
        """Every range of weights and momentum that lives here, whatever the ZeRO stage."""
        for one in self.learned:
            first = owned_rows(one.tensor, self.mesh.place).start * one.tensor.row_elements
            for kind, values, start in self._pieces(one.parameter):
                if values.numel():
                    yield Fragment(one.tensor.name, kind, values, first + start, one.tensor.elements)

    def fragments_to_save(self) -> Iterator[Fragment]:
        """The fragments that this rank writes: over all ranks, each element of each tensor exactly once."""
        layout, place = self.mesh.layout, self.mesh.place
        cuts = {one.tensor.name: one.tensor.cut for one in self.learned}
        for fragment in self.fragments():
            if cuts[fragment.name] == "column" and place.replica > 0:
                continue  # convolutions are the same on all replicas
            copies, copy = (layout.data, place.data_rank) if self.stage == 0 else (1, 0)  # ZeRO has cut already
            length = fragment.values.numel()
            start, stop = copy * length // copies, (copy + 1) * length // copies
            if stop > start:
                yield Fragment(
                    fragment.name, fragment.kind, fragment.values[start:stop], fragment.offset + start, fragment.total
                )

    @property
    def skipped_steps(self) -> int:
        """Steps that DeepSpeed dropped for a gradient that is not finite; all ranks agree on it."""
        return int(self._engine.skipped_steps)

    def is_finite(self) -> bool:
        """Whether every weight is, on every rank. All ranks call it."""
        kept = [part.values.isfinite().all() for part in self.fragments() if part.kind == "weight"]
        device = next(self._engine.module.parameters()).device
        finite = torch.stack(kept).all().float() if kept else torch.ones((), device=device)
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        return bool(finite)

    def loading(self) -> "Loading":
        """Context in which the fragments' values may be overwritten; afterwards the live weights follow them."""
        return Loading(self._engine.optimizer, self.stage)

    def _make_momentum(self) -> None:
        """Create the optimizer's state before the first step, so that it can be saved and loaded at any time."""
        optimizer = self._engine.optimizer
        if self.stage == 0:
            owners, state = [p for group in optimizer.param_groups for p in group["params"]], optimizer.state
        elif self.stage in (1, 2):
            owners, state = optimizer.single_partition_of_fp32_groups, optimizer.optimizer.state
        else:
            owners, state = optimizer.fp32_partitioned_groups_flat, optimizer.optimizer.state
        for owner in owners:
            state[owner].setdefault(MOMENTUM, torch.zeros_like(owner))

    def _pieces(self, parameter: Any) -> Iterator[tuple[Kind, Tensor, int]]:
        """(kind, flat view, start in this rank's flattened rows) of one parameter, by ZeRO stage."""
        optimizer = self._engine.optimizer
        if self.stage == 0:
            yield "weight", parameter.data.view(-1), 0
            yield "momentum", optimizer.state[parameter][MOMENTUM].view(-1), 0
        elif self.stage in (1, 2):
            mapping = parameter._hp_mapping
            if mapping is None:  # no element of it lies in this rank's partition
                return
            start, flat = mapping.lp_fragment_address.start, mapping.hp_fragment_address
            # The state by the flat tensor, not by the mapping: DeepSpeed links that after the first group's step only.
            owner = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            yield "weight", owner.data.narrow(0, flat.start, flat.numel), start
            yield "momentum", optimizer.optimizer.state[owner][MOMENTUM].narrow(0, flat.start, flat.numel), start
        else:
            group, begin, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            owner = optimizer.fp32_partitioned_groups_flat[group]
            part = parameter.ds_tensor.ds_numel
            start = dist.get_rank(parameter.ds_process_group) * part
            length = max(0, min(part, parameter.ds_numel - start))  # the last part is padded
            yield "weight", owner.data.narrow(0, begin, length), start
            yield "momentum", optimizer.optimizer.state[owner][MOMENTUM].narrow(0, begin, length), start


class Loading:
    """What DeepSpeed needs before and after its master weights are overwritten."""

    def __init__(self, optimizer: Any, stage: int) -> None:
        self._optimizer, self._stage = optimizer, stage

    def __enter__(self) -> None:
        if self._stage == 3:
            self._optimizer.checkpoint_event_prologue()

    def __exit__(self, *error: object) -> None:
        if self._stage in (1, 2):
            self._optimizer.update_lp_params()
        if self._stage == 3:
            for group in range(len(self._optimizer.fp16_groups)):
                self._optimizer._reassign_or_swap_out_partitioned_parameters(group)
            self._optimizer.checkpoint_event_epilogue()


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
