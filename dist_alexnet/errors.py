"""The trainer's members of the family of errors (shards/errors.py has the base).

DistAlexnetError
├── InputError
│   ├── ConfigError       a setting is unknown, out of range, or does not go with another
│   ├── LayoutError       the world, the layout and the network do not fit together
│   ├── RunFolderError    the run folder holds something else than this run
│   ├── CheckpointError   what was asked to be loaded is not a whole checkpoint
│   └── WeightsError      weights to import or export do not fit the network or the format
├── BadSamplesError       more pictures failed to decode than `data.bad_samples.max_fraction` allows
├── DrillError            a drill cannot go on: a start did what no fault asked of it
├── DivergedError         the loss is no longer finite
├── EvaluationError       a validation image was not counted exactly once: the figure is refused
└── StopRequested         somebody asked the run to stop; it has saved and can be started again
"""

from shards.errors import DistAlexnetError, InputError


class ConfigError(InputError):
    """A setting is unknown, out of range, or does not go with another."""


class LayoutError(InputError):
    """The world, the layout and the network do not fit together."""


class RunFolderError(InputError):
    """The run folder holds something else than this run."""


class CheckpointError(InputError):
    """What was asked to be loaded is not a whole checkpoint."""


class WeightsError(InputError):
    """Weights to import or export do not fit the network or the format."""


class BadSamplesError(DistAlexnetError):
    """More pictures failed to decode than `data.bad_samples.max_fraction` allows."""


class DivergedError(DistAlexnetError):
    """The loss is no longer finite."""


class EvaluationError(DistAlexnetError):
    """A validation image was not counted exactly once: the figure is refused."""


class StopRequested(DistAlexnetError):
    """Somebody asked the run to stop: it saves, ends, and goes on when it is started again."""

    exit_code = 75


class DrillError(DistAlexnetError):
    """A drill cannot go on: a start did what no fault asked of it."""
