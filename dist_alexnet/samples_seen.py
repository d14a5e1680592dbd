"""What a run writes down of its samples: the keys of every step where asked for, and each picture that failed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist

from dist_alexnet.config import Config
from dist_alexnet.data.batch import Batch, Fault
from dist_alexnet.errors import BadSamplesError
from dist_alexnet.parallel.agree import on_every_rank, on_first_rank
from dist_alexnet.run_folder import worst_shards
from dist_alexnet.track.jsonl import JsonLines


class SamplesSeen:
    """Of one start, on one rank. names_faults: whether this rank is the one to name those of its batches."""

    def __init__(self, config: Config, generation: int, set_size: int, names_faults: bool) -> None:
        self._config, self._folder, self._generation = config, config.run_folder, generation
        self._set_size, self._names_faults = set_size, names_faults
        self._faults: list[tuple[int, Fault]] = []  # (step, fault) not yet in the ledger
        self._keys: JsonLines | None = None
        if config.log.sample_keys:
            self._keys = JsonLines(self._folder / "keys" / f"rank-{dist.get_rank():05d}.jsonl", generation)

    def add(self, step: int, batches: Sequence[Batch]) -> None:
        """The micro-batches of a step."""
        if self._names_faults:
            self._faults += [(step, fault) for batch in batches for fault in batch.faults]
        if self._keys is not None:
            positions = [position for batch in batches for position in batch.position_b.tolist()]
            self._keys.append(
                {"step": step, "positions": positions, "keys": [key for batch in batches for key in batch.keys]}
            )

    def close(self) -> None:
        """Give the file of keys back; faults that were not written yet are forgotten."""
        if self._keys is not None:
            self._keys.close()

    def sync(self) -> None:
        """Lines that belong to a checkpoint are on disk before it counts."""
        if self._keys is not None:
            self._keys.sync()

    def write_evaluated(self, step: int, split: str, faults: Sequence[Fault]) -> None:
        """Write what failed in an evaluation, the same on all ranks, to the ledger: such lines have a `split`."""
        self._to_ledger([{"step": step, "split": split, **vars(fault)} for fault in faults])

    def _to_ledger(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if dist.get_rank() > 0 or not lines:
            return
        ledger = JsonLines(self._folder / "ledger.jsonl", self._generation)
        for line in lines:
            ledger.append(line)
        ledger.sync()
        ledger.close()

    def write_faults(self, step: int, total_bad: int) -> None:
        """Write all ranks' faults since the last call to the ledger; all ranks call it.

        total_bad: since the start of the run. Raises BadSamplesError where that is too many.
        """
        found = sorted(
            (fault.position, at, fault) for part in on_every_rank(lambda: self._faults) for at, fault in part
        )
        self._faults = []
        self._to_ledger([{"step": at, **vars(fault)} for _, at, fault in found])
        seen, limit = step * self._config.data.batch_size, self._config.data.bad_samples.max_fraction
        # Of one epoch at least: a single picture early on is no sign of a bad set.
        if total_bad > limit * max(seen, self._set_size):
            last, worst = found[-1][2], on_first_rank(lambda: worst_shards(self._folder))
            raise BadSamplesError(
                f"{total_bad} of {seen} pictures did not decode, expected at most data.bad_samples.max_fraction "
                f"({limit}): most in {worst}, the last {last.key} in {last.url}; "
                "see ledger.jsonl, mend these shards, or leave them out by data.exclude, which is another run"
            )
