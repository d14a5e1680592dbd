"""The weighted mean of what several networks say of one set, in fp64; on rank 0 alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_alexnet.data.batch import Fault
from dist_alexnet.errors import EvaluationError
from dist_alexnet.judging.probabilities import Answers
from shards.errors import InputError

ROWS_AT_A_TIME = 4096


def part_weights(weights: Sequence[float] | None, parts: int) -> tuple[float, ...]:
    """The weight of each part; they sum to 1. Raises InputError for what cannot be weights."""
    given = [1.0] * parts if weights is None else list(weights)
    if len(given) != parts:
        raise InputError(f"--weights has {len(given)} numbers, expected one for each of {parts} checkpoints")
    if not all(weight >= 0 for weight in given) or not 0 < sum(given) < float("inf"):
        shown = ",".join(f"{weight:g}" for weight in given)
        raise InputError(f"--weights is {shown}, expected numbers of at least 0 with a sum above it")
    return tuple(weight / sum(given) for weight in given)


@dataclass
class Mean:
    """Grows by a part at a time. `inputs` says of each, in plain values, what it is."""

    answers: Answers | None = None  # of the first part: keys and labels are everyone's
    inputs: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[int, Fault] = field(default_factory=dict)  # by number in the index
    _total_NC: NDArray[np.float64] | None = None
    _bad_N: NDArray[np.bool_] | None = None

    def add(self, answers: Answers, weight: float, said: dict[str, Any], faults: Sequence[Fault] = ()) -> None:
        """A picture that one part could not decode is bad in the mean. Raises InputError for a part of another set."""
        if not np.isfinite(answers.probability_NC).all():
            raise EvaluationError(f"{_name(said)} answers with numbers that are not finite: there is no figure")
        if self.answers is None:
            self.answers = answers
            self._total_NC = np.zeros(answers.probability_NC.shape)
            self._bad_N = np.zeros(len(answers.keys), dtype=bool)
        if answers.set_digest != self.answers.set_digest:
            other = _name(self.inputs[0])
            raise InputError(f"{_name(said)} and {other} are about other images or labels: name parts of one set")
        assert self._total_NC is not None
        assert self._bad_N is not None
        for first in range(0, len(self._total_NC), ROWS_AT_A_TIME):
            some = slice(first, first + ROWS_AT_A_TIME)
            self._total_NC[some] += weight * answers.probability_NC[some].astype(np.float64)
        self._bad_N |= answers.bad
        self.faults = {fault.position: fault for fault in faults} | self.faults
        self.inputs.append({**said, "weight": weight})

    def total(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(mean probabilities (N, C), zeros where a picture did not decode; which these are (N,))."""
        assert self._total_NC is not None
        assert self._bad_N is not None
        self._total_NC[self._bad_N] = 0
        return self._total_NC, self._bad_N

    def as_answers(self) -> Answers:
        """For a file, to be averaged later."""
        assert self.answers is not None
        total_NC, _ = self.total()
        return replace(self.answers, probability_NC=total_NC.astype(np.float32), made_of=tuple(self.inputs))


def _name(said: dict[str, Any]) -> str:
    return str(said.get("checkpoint") or said.get("probabilities"))
