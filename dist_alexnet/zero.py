"""Where DeepSpeed keeps weights and gradients, by ZeRO stage. Beside engine.py only this reads what is private there.

Stage 0: parameters and their `.grad`, whole. Stages 1 and 2: one flat fp32 tensor a group, cut over the data ranks in
equal parts. Stage 3: each parameter is cut over the data ranks, the parts of a group lie in one flat fp32 tensor.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_alexnet.optim.rules import Rule

# What is larger in a gradient counts as not finite: squares of less add up in fp32, over 2^30 elements. Where DeepSpeed
# finds no norm it leaves the step out without a word, in ZeRO 1 to 3 and not in 0.
LARGEST = 2.0**48


@dataclass(frozen=True)
class Held:
    """Where this rank's part of a parameter lies in the tensor that the update rule sees."""

    owner: Tensor  # the parameter itself, or ZeRO's flat tensor
    begin: int  # of its first element in `owner`
    length: int
    start: int  # of its first element in this rank's flattened rows

    def of(self, values: Tensor) -> Tensor:
        """That part of `owner`, or of a state that lies beside it, flat."""
        return values.detach().view(-1).narrow(0, self.begin, self.length)


class Zero:
    """A look into DeepSpeed's optimizer. `rule` is the update rule inside it."""

    def __init__(self, optimizer: Any, rule: Rule, stage: int) -> None:
        self._optimizer, self._rule, self.stage = optimizer, rule, stage

    def owners(self) -> list[Tensor]:
        """Every tensor that the rule updates."""
        if self.stage == 0:
            return [param for group in self._rule.param_groups for param in group["params"]]
        if self.stage in (1, 2):
            return list(self._optimizer.single_partition_of_fp32_groups)
        return list(self._optimizer.fp32_partitioned_groups_flat)

    def place(self, parameter: Any) -> Held | None:
        """Where this rank's part of a parameter lies; None where it has none."""
        optimizer = self._optimizer
        if self.stage == 0:
            return Held(parameter, 0, parameter.numel(), 0)
        if self.stage in (1, 2):
            mapping = parameter._hp_mapping
            if mapping is None:  # no element of it lies in this rank's partition
                return None
            start, flat = mapping.lp_fragment_address.start, mapping.hp_fragment_address
            owner = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            return Held(owner, flat.start, flat.numel, start)
        group, begin, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
        part = parameter.ds_tensor.ds_numel
        start = dist.get_rank(parameter.ds_process_group) * part
        length = max(0, min(part, parameter.ds_numel - start))  # the last part is padded
        return Held(optimizer.fp32_partitioned_groups_flat[group], begin, length, start) if length else None

    def gradients(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """(group, gradient) between a step's last backward and the step: averaged over data ranks, this rank's part.

        In stages 1 to 3 the tensors hold ZeRO's padding, too; where the cut of a group is the same on two ranks they
        have the same sizes in the same order.
        """
        groups = self._rule.param_groups
        if self.stage == 0:
            for group in groups:
                yield from ((group, param.grad) for param in group["params"] if param.grad is not None)
            return
        for number, parts in self._optimizer.averaged_gradients.items():
            group = groups[number if self.stage < 3 else self._optimizer.sub_group_to_group_id[number]]
            yield from ((group, part) for part in parts)

    def own_gradients(self, parameters: Sequence[Any]) -> Iterator[tuple[int, Held, Tensor]]:
        """(number of the parameter, its place, gradient of this rank's part of it), at the time of `gradients`.

        Slow: it lays out each group's gradient as the rule sees it.
        """
        flat: dict[int, Tensor] = {}
        if self.stage > 0:
            gradients = self._optimizer.averaged_gradients
            for number, owner in enumerate(self.owners()):
                if gradients.get(number):
                    flat[id(owner)] = torch.cat([part.reshape(-1) for part in gradients[number]])
        for number, parameter in enumerate(parameters):
            held = self.place(parameter)
            gradient = parameter.grad if held is None or self.stage == 0 else flat.get(id(held.owner))
            if held is not None and gradient is not None:
                yield number, held, held.of(gradient)


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
