"""What a run writes down of its samples: the keys of every step where asked for, and each picture that failed."""

from collections.abc import Sequence

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

    def sync(self) -> None:
        """Lines that belong to a checkpoint are on disk before it counts."""
        if self._keys is not None:
            self._keys.sync()

    def write_faults(self, step: int, total_bad: int) -> None:
        """Write all ranks' faults since the last call to the ledger; all ranks call it.

        total_bad: since the start of the run. Raises BadSamplesError where that is too many.
        """
        found = sorted(
            (fault.position, at, fault) for part in on_every_rank(lambda: self._faults) for at, fault in part
        )
        self._faults = []
        if dist.get_rank() == 0:
            ledger = JsonLines(self._folder / "ledger.jsonl", self._generation)
            for _, at, fault in found:
                ledger.append({"step": at, **vars(fault)})
            ledger.sync()
            ledger.close()
        seen, limit = step * self._config.data.batch_size, self._config.data.bad_samples.max_fraction
        # Of one epoch at least: a single picture early on is no sign of a bad set.
        if total_bad > limit * max(seen, self._set_size):
            last, worst = found[-1][2], on_first_rank(lambda: worst_shards(self._folder))
            raise BadSamplesError(
                f"{total_bad} of {seen} pictures did not decode, expected at most data.bad_samples.max_fraction "
                f"({limit}): most in {worst}, the last {last.key} in {last.url}; "
                "see ledger.jsonl, mend these shards, or leave them out by data.exclude, which is another run"
            )
