"""Who is told of a run, on each rank: metrics.jsonl, W&B and the terminal."""

import sys
from typing import Any

from dist_alexnet.config import Config
from dist_alexnet.environment import read_world
from dist_alexnet.job import Job
from dist_alexnet.parallel.agree import on_first_rank
from dist_alexnet.record import versions, without_secrets
from dist_alexnet.run_folder import host_name
from dist_alexnet.standing import Standing, layout_of
from dist_alexnet.track.console import open_console
from dist_alexnet.track.jsonl import JsonLines
from dist_alexnet.track.tracker import Tracker
from dist_alexnet.track.wandb_run import WandbRun
from dist_alexnet.track.wandb_start import start_wandb, start_wandb_node, wandb_identity


def metrics_file(config: Config, generation: int) -> JsonLines | None:
    """Where this generation's lines go; None on ranks other than 0."""
    return JsonLines(config.run_folder / "metrics.jsonl", generation) if read_world().rank == 0 else None


def open_tracker(config: Config, job: Job, standing: Standing, generation: int) -> Tracker:
    """The tracker of this rank; all ranks call it. `standing` learns the W&B id of the run, for the checkpoints."""
    world = read_world()
    run_id = on_first_rank(lambda: wandb_identity(config.log.wandb, config.run_folder, standing.wandb_id))
    standing.wandb_id = run_id or standing.wandb_id
    wandb: WandbRun | None = None
    if world.rank == 0:
        wandb = start_wandb(
            config.log.wandb,
            run_folder=config.run_folder,
            run_name=config.run.name,
            run_id=run_id,
            config=lambda: _facts(config, job),
            generation=generation,
            step=standing.step,
            host=host_name(),
            command_is_public=without_secrets(sys.argv) == sys.argv,
        )
    elif world.local_rank == 0:
        wandb = start_wandb_node(
            config.log.wandb,
            run_folder=config.run_folder,
            run_name=config.run.name,
            run_id=run_id,
            host=host_name(),
        )
    console = open_console(world.rank, job.total_steps, standing.step)
    return Tracker(metrics_file(config, generation), wandb, console)


def _facts(config: Config, job: Job) -> dict[str, Any]:
    return {**config.model_dump(mode="json"), "layout": layout_of(job), "versions": versions()}
