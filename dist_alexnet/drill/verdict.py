"""What a run that was struck has come to, beside the one that was not: samples, losses, weights."""

import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict

from dist_alexnet.checkpoint.contents import read_contents
from dist_alexnet.checkpoint.finding import resolve
from dist_alexnet.checkpoint.flat import FlatChunk, FlatReader
from dist_alexnet.compare import compare, sightings
from dist_alexnet.config import Config
from dist_alexnet.job import Job
from dist_alexnet.track.jsonl import live_lines, read_lines, starts
from shards.order import Order
from shards.reader import ShardReader

FOLLOWED = 1e-4  # relative difference of losses; on another layout rounding grows, as fast as training is chaotic


@dataclass(frozen=True)
class Verdict:
    """Samples of the whole run by its live lines; weights of its last checkpoint."""

    run: str
    starts: int
    samples: int
    lost: int
    repeated: int
    wrong: int  # at a place where the index, computed alone, has another
    same_layout: bool
    losses_equal: bool
    followed: int  # steps from the first on at which the loss is the unbroken run's within FOLLOWED
    weights_equal: bool
    taken_up: int  # starts that took up a checkpoint, of which both they and who wrote it have digests
    changed: int  # of these, those that came out with other bits

    @property
    def held(self) -> bool:
        """Whether what is promised was kept."""
        if self.lost or self.repeated or self.wrong or self.changed:
            return False
        return self.taken_up > 0 if not self.same_layout else self.weights_equal and self.losses_equal

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "held": self.held}


def judge(run: Path, unbroken: Path, job: Job, same_layout: bool) -> Verdict:
    """Compare a finished run with the unbroken one. Raises CheckpointError where one has no checkpoint."""
    lost, repeated, wrong = samples_of(run, job)
    here, there = _tensors(run), _tensors(unbroken)
    compared = compare(run, unbroken)
    taken_up, changed = _taken_up(run)
    return Verdict(
        run=run.name,
        starts=len(starts(run / "attempts.jsonl")),
        samples=job.total_steps * job.config.data.batch_size,
        lost=lost,
        repeated=repeated,
        wrong=wrong,
        same_layout=same_layout,
        losses_equal="train/loss" not in compared.first and compared.steps["train/loss"] > 0,
        followed=_followed(run, unbroken),
        weights_equal=here.keys() == there.keys() and all(_same_bits(here[name], there[name]) for name in there),
        taken_up=taken_up,
        changed=changed,
    )


def samples_of(run: Path, job: Job) -> tuple[int, int, int]:
    """(lost, repeated, wrong) samples among the positions of the whole run, by the live lines of all ranks."""
    expected = _Keys(job)
    seen: Counter[int] = Counter()
    wrong: set[int] = set()
    for sighting in sightings(run):
        if sighting.column == 0:
            seen.update(sighting.positions)
        wrong.update(
            position
            for position, key in zip(sighting.positions, sighting.keys, strict=True)
            if expected.at(position) != key
        )
    total = job.total_steps * job.config.data.batch_size
    lost = sum(position not in seen for position in range(total))
    repeated = sum(count - 1 for position, count in seen.items() if position < total)
    return lost, repeated, len(wrong | {position for position in seen if position >= total})


class _Keys:
    """Which key stands at a position, by the index and the order alone."""

    def __init__(self, job: Job) -> None:
        config: Config = job.config
        order = Order(job.train.samples_per_shard, config.run.seed, config.data.lane_count, config.data.window_shards)
        total = job.total_steps * config.data.batch_size
        self._samples = order.samples(torch.arange(total).numpy())
        self._reader, self._keys = ShardReader(job.train), dict[int, str]()

    def at(self, position: int) -> str | None:
        if position >= len(self._samples):
            return None
        sample = int(self._samples[position])
        if sample not in self._keys:
            self._keys[sample] = self._reader.key(sample)
        return self._keys[sample]


def _tensors(run: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint, whole and flat: weights and the rule's state."""
    folder = resolve(run)
    stored = read_contents(folder).state_dict_metadata
    whole = {name: torch.full((entry.size[0],), torch.nan) for name, entry in stored.items()}  # type: ignore[union-attr]
    chunks = {name: FlatChunk(values, 0, values.numel()) for name, values in whole.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is one process: so it is meant
        load_state_dict(chunks, storage_reader=FlatReader(folder), no_dist=True)
    return whole


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def _taken_up(run: Path) -> tuple[int, int]:
    """(starts that took up a checkpoint whose digests are known, those of them that came out with other bits)."""
    lines = read_lines(run / "digests.jsonl")
    digests = {(line["generation"], line["step"]): line["digests"] for line in lines}
    pairs = [
        (digests.get((start.stands_on, start.step)), digests.get((number, start.step)))
        for number, start in starts(run / "attempts.jsonl").items()
        if start.stands_on is not None
    ]
    known = [pair for pair in pairs if None not in pair]
    return len(known), sum(before != after for before, after in known)


def _followed(run: Path, unbroken: Path) -> int:
    here, there = _losses(run), _losses(unbroken)
    for count, step in enumerate(sorted(there)):
        if step not in here or not abs(here[step] - there[step]) <= FOLLOWED * abs(there[step]):
            return count
    return len(there)


def _losses(run: Path) -> dict[int, float]:
    lines = live_lines(run / "metrics.jsonl", starts(run / "attempts.jsonl"))
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
