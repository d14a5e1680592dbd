"""The `track` commands: a run in Weights & Biases, made or looked at after the fact."""

from pathlib import Path
from typing import Annotated

import typer

from dist_alexnet.cli_output import check_can_write, write_json

track_app = typer.Typer(help="A run in Weights & Biases.")

RunDir = Annotated[Path, typer.Argument(help="run folder", metavar="RUN_DIR", show_default=False)]
Project = Annotated[str | None, typer.Option(help="W&B project; the run's own without it", show_default=False)]
Entity = Annotated[str | None, typer.Option(help="W&B user or team; the run's own without it", show_default=False)]


@track_app.command("replay")
def replay(
    run_dir: RunDir,
    mode: Annotated[str, typer.Option(help="auto, online or offline")] = "auto",
    project: Project = None,
    entity: Entity = None,
    run_id: Annotated[
        str | None, typer.Option("--id", help="id of the new W&B run; drawn without it", show_default=False)
    ] = None,
) -> None:
    """Make a new W&B run of metrics.jsonl: what counts of all starts, each step once. Overwrites nothing."""
    from dist_alexnet.track.replay import replay as replay_run

    if mode not in ("auto", "online", "offline"):
        raise typer.BadParameter(f"{mode!r}, expected auto, online or offline", param_hint="--mode")
    made = replay_run(run_dir, mode=mode, project=project, entity=entity, run_id=run_id)
    typer.echo(
        f"{made.mode} run {made.run_id}: {made.steps} steps, {made.pictures} pictures, {made.restarts} restarts of the "
        "training run"
    )
    if made.mode == "offline":
        typer.echo(f"send it: wandb sync {run_dir}/wandb/offline-run-*-{made.run_id}")


@track_app.command("dashboard")
def dashboard(
    run_dir: RunDir,
    project: Project = None,
    entity: Entity = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the workspace to this file; asks no service, needs no key")
    ] = None,
) -> None:
    """Make a W&B workspace for the run: sections and panels of what a run writes down."""
    from dist_alexnet.track.dashboard import dashboard_spec, save_dashboard

    if json_file is None:
        typer.echo(f"made {save_dashboard(run_dir, project, entity)}")
        return
    check_can_write(json_file)
    write_json(json_file, dashboard_spec(run_dir, project, entity))
    typer.echo(f"wrote {json_file}")
