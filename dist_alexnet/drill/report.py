"""The report of a drill: what struck, how soon that was seen, what it cost, and what the runs came to."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_alexnet.drill.faults import FAULTS
from dist_alexnet.drill.scene import Struck
from dist_alexnet.drill.verdict import FOLLOWED, Verdict
from dist_alexnet.track.jsonl import read_lines, starts
from dist_alexnet.track.table import print_table

ASKED = ("stop", "clock")  # after these a run is saved where it stands


@dataclass(frozen=True)
class Report:
    """What a drill has found so far. redone: steps done again because of each fault, None where not yet known."""

    wanted: int
    struck: Sequence[Struck]
    redone: Sequence[int | None]
    verdicts: Sequence[Verdict]
    spent_s: float

    @property
    def held(self) -> bool:
        """Whether everything that is promised was kept, by every run."""
        return all(verdict.held for verdict in self.verdicts) and not self.troubles

    @property
    def troubles(self) -> list[str]:
        """What should not have happened, a sentence each."""
        told = [f"{one.run}, start {one.generation}, {one.what}: {one.trouble}" for one in self.struck if one.trouble]
        return told + [
            f"{one.run}, start {one.generation}, {one.what}: {steps} steps were done again after a request to stop"
            for one, steps in zip(self.struck, self.redone, strict=True)
            if steps and one.fault in ASKED
        ]

    @property
    def whole(self) -> bool:
        """Whether as many faults as wanted have struck."""
        return len(self.struck) >= self.wanted

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "held": self.held,
            "wanted": self.wanted,
            "struck": len(self.struck),
            "spent_s": round(self.spent_s, 1),
            "faults": {name: self.of_kind(name) for name in FAULTS if self.of_kind(name)["struck"]},
            "runs": [verdict.as_dict() for verdict in self.verdicts],
            "trouble": self.troubles,
        }

    def of_kind(self, name: str) -> dict[str, Any]:
        """One kind of fault: how often, seconds until it was seen, steps that were done again."""
        chosen = [(one, steps) for one, steps in zip(self.struck, self.redone, strict=True) if one.fault == name]
        seen_s = [one.detected_s for one, _ in chosen if one.detected_s is not None]
        steps = [count for _, count in chosen if count is not None]
        return {
            "what": FAULTS[name].what,
            "struck": len(chosen),
            "detected_s": {"median": round(statistics.median(seen_s), 2), "max": round(max(seen_s), 2)}
            if seen_s
            else None,
            "steps_redone": {"median": statistics.median(steps), "max": max(steps)} if steps else None,
        }

    def show(self) -> None:
        """Print it as two tables and a sentence."""
        faults = {name: self.of_kind(name) for name in FAULTS}
        rows = [
            [name, kind["what"], str(kind["struck"]), _both(kind["detected_s"], "s"), _both(kind["steps_redone"])]
            for name, kind in faults.items()
            if kind["struck"]
        ]
        print_table("Faults", ["fault", "what", "struck", "seen after (median, max)", "steps redone"], rows)
        print_table("Runs, beside the unbroken one", _RUN_COLUMNS, [_run_row(verdict) for verdict in self.verdicts])
        for trouble in self.troubles:
            print(f"trouble: {trouble}")
        print(self.sentence())

    def sentence(self) -> str:
        """The whole in one line."""
        lost = sum(verdict.lost for verdict in self.verdicts)
        repeated = sum(verdict.repeated for verdict in self.verdicts)
        same = [verdict for verdict in self.verdicts if verdict.same_layout]
        taken_up = sum(verdict.taken_up for verdict in self.verdicts)
        kept = taken_up - sum(verdict.changed for verdict in self.verdicts)
        parts = [
            f"{len(self.struck)} of {self.wanted} faults in {len(self.verdicts)} finished runs, {self.spent_s:.0f} s",
            f"{lost} samples lost, {repeated} repeated",
            f"weights bit for bit equal in {sum(verdict.weights_equal for verdict in same)} of {len(same)} that stayed",
            f"state bit for bit what was saved at {kept} of {taken_up} resumptions",
        ]
        return "; ".join(parts) + ("" if self.held else "; what is promised was NOT kept")


_RUN_COLUMNS = ["run", "starts", "samples", "lost", "repeated", "wrong", "taken up as saved", "losses", "weights"]


def _run_row(verdict: Verdict) -> list[str]:
    numbers = [verdict.starts, verdict.samples, verdict.lost, verdict.repeated, verdict.wrong]
    kept = f"{verdict.taken_up - verdict.changed} of {verdict.taken_up}"
    losses = "equal" if verdict.losses_equal else f"within {FOLLOWED:g} for {verdict.followed} steps"
    return [verdict.run, *map(str, numbers), kept, losses, "equal" if verdict.weights_equal else "differ"]


def _both(values: dict[str, float] | None, unit: str = "") -> str:
    return "-" if values is None else f"{values['median']:g}, {values['max']:g} {unit}".strip()


def redone(runs: Path, struck: Sequence[Struck]) -> list[int | None]:
    """Steps that each fault made the run do again: how far it had come, less where the next start took it up.

    A damaged checkpoint costs the start that meets it, any other fault the one after it (None where that is the same).
    """
    met = {(one.run, one.generation) for one in struck if one.damaged}
    return [
        None
        if not one.damaged and (one.run, one.generation + 1) in met
        else _redone(runs / one.run, one.generation + (0 if one.damaged else 1))
        for one in struck
    ]


def _redone(run: Path, generation: int) -> int | None:
    started = starts(run / "attempts.jsonl")
    if generation not in started or generation - 1 not in started:
        return None
    lines = read_lines(run / "metrics.jsonl")
    done = max((line["step"] for line in lines if line["generation"] == generation - 1), default=0)
    return max(0, max(done, started[generation - 1].step) - started[generation].step)
