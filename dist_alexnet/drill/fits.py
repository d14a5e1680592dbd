"""What of a config can be drilled: which faults can strike it, and on which other layouts it fits."""

from importlib.util import find_spec

from dist_alexnet.config import Config
from dist_alexnet.drill.shards_at_hand import can_be_linked
from dist_alexnet.errors import ConfigError, LayoutError
from dist_alexnet.job import Job, make_job


def check_can_drill(config: Config, total_steps: int) -> None:
    """Raise ConfigError for a config that cannot be killed and compared."""
    if config.checkpoint.every_steps is None:
        raise ConfigError(
            "checkpoint.every_steps is not set, expected a few steps: a drill strikes within two saves, so say "
            "checkpoint.every_steps=5"
        )
    if config.checkpoint.url is not None:
        raise ConfigError("checkpoint.url is set, expected null: a drill looks at checkpoints in the run folder")
    if config.checkpoint.keep < 2:
        raise ConfigError(f"checkpoint.keep is {config.checkpoint.keep}, expected 2 or more: one of them is damaged")
    if total_steps < 8 * config.checkpoint.every_steps:
        raise ConfigError(
            f"the run has {total_steps} steps, expected at least 8 x checkpoint.every_steps "
            f"({config.checkpoint.every_steps}): make it longer with run.steps"
        )


def cannot_strike(config: Config, job: Job, other_layouts: bool) -> dict[str, str]:
    """Kinds of faults that cannot strike this run, and why."""
    cannot = {}
    if config.evaluate.every_steps is None or config.data.val is None:
        cannot["evaluation"] = "evaluate.every_steps or data.val is not set"
    if config.data.train is None or not can_be_linked(config.data.train, job.train):
        cannot["download"] = cannot["shard"] = "the training set is not an index on a disk of this host"
    elif find_spec("aiohttp") is None:
        cannot["download"] = "aiohttp is not installed"
    digests, saves = config.log.digest_every_steps, config.checkpoint.every_steps
    if not other_layouts:
        cannot["layout"] = "no other layout fits, or --launch is given"
    elif digests is None or saves is None or saves % digests:
        cannot["layout"] = "log.digest_every_steps is no divisor of checkpoint.every_steps"
    return cannot


def other_layouts(config: Config, ranks: int) -> list[tuple[int, tuple[str, ...]]]:
    """(ranks, overrides) of layouts that fit this config and are not its own."""
    own = (ranks, config.parallel.columns, config.parallel.zero_stage)
    found: list[tuple[int, tuple[str, ...]]] = []
    for world in sorted({1, ranks}):
        for columns in (1, 2):
            for stage in (0, 1, 2, 3):
                overrides = (f"parallel.columns={columns}", f"parallel.zero_stage={stage}", "parallel.replicas=1")
                if (world, columns, stage) != own and _fits(config, world, columns, stage):
                    found.append((world, overrides))
    return found


def _fits(config: Config, ranks: int, columns: int, stage: int) -> bool:
    values = config.model_dump(mode="json")
    values["parallel"] |= {"columns": columns, "zero_stage": stage, "replicas": 1}
    try:
        make_job(Config.model_validate(values), ranks)
    except (LayoutError, ConfigError, ValueError):
        return False
    return True
