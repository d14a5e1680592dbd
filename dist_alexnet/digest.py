"""Digests of the state every n steps: the same on every layout, so that two runs show at which step they part.

The digest of a tensor is the sum modulo 2**64, over its elements, of a hash of (tensor, element number, bits of the
value). A sum has no order, so each rank adds up what it would save, and one all-reduce of a few words ends it.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from dist_alexnet.config import Config
from dist_alexnet.engine import Engine, Fragment
from dist_alexnet.track.jsonl import JsonLines
from shards.hashing import GOLDEN, mix, stream_key

CPU_BLOCK, GPU_BLOCK = 1 << 15, 1 << 24  # elements at a time: what stays in a core's cache; little memory, few launches
PARTS = ("weight", "state")  # weights; and what rule and batch norms keep


class Digests:
    """Of one start, on one rank: writes digests.jsonl."""

    def __init__(self, config: Config, generation: int) -> None:
        self._every, self._lines = config.log.digest_every_steps, None
        if self._every is not None and dist.get_rank() == 0:
            self._lines = JsonLines(config.run_folder / "digests.jsonl", generation)

    def after(self, step: int, last: bool, engine: Engine) -> None:
        """Write a line where one is due after `step`. All ranks call it."""
        if self._every is not None and (last or step % self._every == 0):
            self._write(step, engine)

    def taken_up(self, step: int, engine: Engine) -> None:
        """Write a line of what this start has loaded: who saved it had the same bits. All ranks call it."""
        if self._every is not None and step > 0:
            self._write(step, engine)

    def _write(self, step: int, engine: Engine) -> None:
        digests = state_digests(engine)
        if self._lines is not None:
            self._lines.append({"step": step, "digests": digests})


def state_digests(engine: Engine) -> dict[str, str]:
    """ "<tensor>/weight" and "<tensor>/state" -> 16 hex digits, the same on all ranks. All ranks call it."""
    names = [one.tensor.name for one in engine.learned] + [tensor.name for tensor, _ in engine.carried]
    sums_NP = add_up(engine.fragments_to_save(), names)
    dist.all_reduce(sums_NP)
    words = (sums_NP.cpu().numpy().view("uint64")).tolist()
    return {
        f"{name}/{part}": f"{word:016x}"
        for name, row in zip(names, words, strict=True)
        for part, word in zip(PARTS, row, strict=True)
    }


def add_up(fragments: Iterable[Fragment], names: Sequence[str]) -> Tensor:
    """What these fragments add to the digests: int64 (names, parts), on their device."""
    rows = {name: row for row, name in enumerate(names)}
    parts = list(fragments)
    device = parts[0].values.device if parts else torch.device("cpu")
    sums_NP = torch.zeros(len(names), len(PARTS), dtype=torch.int64, device=device)
    for part in parts:
        column = 0 if part.kind == "weight" else 1
        sums_NP[rows[part.name], column] += _digest(part)
    return sums_NP


def _digest(part: Fragment) -> Tensor:
    """Of one fragment: an int64, which wraps around."""
    block = GPU_BLOCK if part.values.is_cuda else CPU_BLOCK
    key = stream_key(0, f"digest/{part.name}/{part.kind}")
    total = torch.zeros((), dtype=torch.int64, device=part.values.device)
    # hash(key, element, bits): the multiples of GOLDEN of different elements lie far apart, and bits have only 32
    places = torch.arange(min(block, len(part.values)), dtype=torch.int64, device=total.device) * GOLDEN
    for at in range(0, len(part.values), block):
        bits = part.values[at : at + block].view(torch.int32).to(torch.int64)
        start = torch.tensor(part.offset + at, dtype=torch.int64) * GOLDEN + key
        total += mix(places[: len(bits)] + start.to(total.device) + bits).sum()
    return total
