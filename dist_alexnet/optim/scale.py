"""The loss scale of half precision with a narrow exponent (fp16): arithmetic only, the same on every rank."""

from typing import Any

START = 65536.0  # this and the next two: the constants of torch's GradScaler
GROWTH_STEPS = 2000
FACTOR = 2.0
SMALLEST = 2.0**-14  # below it no fp16 number is in danger


class LossScale:
    """What the loss is multiplied by, and the gradient divided by; always a power of two, so neither rounds."""

    def __init__(self) -> None:
        self.scale, self.good_steps, self.dropped_steps = START, 0, 0

    @property
    def is_smallest(self) -> bool:
        """Whether it can fall no further: a gradient that is not finite then is no fault of the scale."""
        return self.scale <= SMALLEST

    def settle(self, dropped: bool) -> None:
        """Note how a step went: half the scale after one that was dropped, twice after 2000 good ones."""
        if dropped:
            self.scale, self.good_steps, self.dropped_steps = self.scale / FACTOR, 0, self.dropped_steps + 1
            return
        self.good_steps += 1
        if self.good_steps == GROWTH_STEPS:
            self.scale, self.good_steps = self.scale * FACTOR, 0

    def state(self) -> dict[str, Any]:
        return {"scale": self.scale, "good_steps": self.good_steps, "dropped_steps": self.dropped_steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])
        self.dropped_steps = int(state["dropped_steps"])
