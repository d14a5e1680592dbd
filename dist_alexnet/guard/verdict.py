"""Which rank holds the others up, out of what all of them say of themselves: arithmetic and words only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dist_alexnet.guard.beats import Beat

NAMED = 3  # culprits that get words of their own


@dataclass(frozen=True)
class Heard:
    """The last beat of a rank, and for how long no newer one has come, by the clock of who listens."""

    beat: Beat
    silent_s: float

    @property
    def in_s(self) -> float:
        """How long that rank has been where it is, at least."""
        return self.beat.in_s + self.silent_s


def verdict(heard: Sequence[Heard], silent_after_s: float) -> str:
    """One sentence: who holds the run up, since when and in what; and who waits.

    Silent are stopped processes and hosts that are gone. Of the others, one that is in no collective holds up those
    that are; of several, the one that has done least.
    """
    silent = [one for one in heard if one.silent_s > silent_after_s]
    if silent:
        return _sentence([_silent(one) for one in silent], _others(heard, silent))
    free = [one for one in heard if not one.beat.in_collective]
    if not free:
        told = [_busy(one) for one in heard]
        return _sentence(told, [], "the ranks wait in collectives that do not belong together: ")
    least = min(one.beat.phases for one in free)
    behind = [one for one in free if one.beat.phases == least]
    return _sentence([_busy(one) for one in behind], _others(heard, behind))


def store_is_silent(host: str, for_s: float, mine: Beat) -> str:
    """The sentence where the store does not answer, which rank 0 keeps, or who started it."""
    return (
        f"rank 0 on host {host}: silent for {for_s:.0f} s and more, as is the store of the ranks that it or its "
        f"torchrun keeps; waiting: rank {mine.rank} in {mine.phase}, step {mine.step}"
    )


def ranks_text(ranks: Iterable[int]) -> str:
    """ "rank 3", "ranks 0-3, 7"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    alone = len(runs) == 1 and len(runs[0]) == 1
    return f"{'rank' if alone else 'ranks'} {', '.join(parts)}"


def _silent(one: Heard) -> str:
    beat = one.beat
    last = f"last in {beat.phase}, step {beat.step}"
    return f"rank {beat.rank} on host {beat.host}: silent for {one.silent_s:.0f} s and more, {last}"


def _busy(one: Heard) -> str:
    beat = one.beat
    words = [f"rank {beat.rank} on host {beat.host}: in {beat.phase} since {one.in_s:.0f} s"]
    words += [beat.waits_for] if beat.waits_for else []
    words.append(f"step {beat.step}")
    words += [f"at {beat.stands_at}"] if beat.stands_at else []
    return ", ".join(words)


def _others(heard: Sequence[Heard], culprits: Sequence[Heard]) -> list[str]:
    """ "ranks 0-4 in backward" for each phase that the others are in."""
    by_phase: dict[str, list[int]] = {}
    for one in heard:
        if one not in culprits:
            by_phase.setdefault(one.beat.phase, []).append(one.beat.rank)
    return [f"{ranks_text(ranks)} in {phase}" for phase, ranks in by_phase.items()]


def _sentence(told: Sequence[str], waiting: Sequence[str], before: str = "") -> str:
    more = f"; and {len(told) - NAMED} more" if len(told) > NAMED else ""
    tail = f"; waiting: {', '.join(waiting)}" if waiting else ""
    return f"{before}{'; '.join(told[:NAMED])}{more}{tail}"
