"""`dist-alexnet checkpoint`: what lies in a run folder, whether it is whole, and making room."""

from pathlib import Path
from typing import Annotated

import typer

checkpoint_app = typer.Typer(help="The checkpoints of a run.")
RunDir = Annotated[Path, typer.Argument(help="run folder", metavar="RUN_DIR")]


@checkpoint_app.command("ls")
def ls(run_dir: RunDir) -> None:
    """One line a checkpoint, newest first: step, generation, size, layout, top-1 of its best evaluation so far."""
    from dist_alexnet.checkpoint import store

    for folder in store.committed(run_dir):
        commit = store.read_commit(folder)
        size_mb = sum(record.bytes for record in commit.files) / 1e6
        best = commit.state.get("best")
        judged = f"best top-1 {best['top1']:.4f} at step {best['step']}" if best else "not evaluated yet"
        axes = {key: value for key, value in commit.layout.items() if key != "zero_stage"}
        layout = " x ".join(f"{value} {key}" for key, value in axes.items())
        if "zero_stage" in commit.layout:
            layout += f", ZeRO stage {commit.layout['zero_stage']}"
        typer.echo(f"step {commit.step}  generation {commit.generation}  {size_mb:.1f} MB  {layout}  {judged}")


@checkpoint_app.command("verify")
def verify(run_dir: RunDir) -> None:
    """Check every file of every checkpoint against its COMMIT, by size and sha256. Exit code 2 if one is not whole."""
    from dist_alexnet.checkpoint import store
    from dist_alexnet.errors import CheckpointError

    folders = store.committed(run_dir)
    damaged = []
    for folder in folders:
        try:
            store.check(folder)
            typer.echo(f"good     {folder}")
        except CheckpointError as error:
            damaged.append(folder)
            typer.echo(f"damaged  {folder}: {error}")
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} of {len(folders)} checkpoints in {run_dir} are not whole: a run goes on from the newest "
            "that is; bring the files back, or take the folders away"
        )


@checkpoint_app.command("prune")
def prune(
    run_dir: RunDir, keep: Annotated[int, typer.Option(help="how many of the newest whole ones stay", min=1)] = 1
) -> None:
    """Remove all but the newest whole checkpoints, and the one with the best evaluation."""
    from dist_alexnet.checkpoint import store

    newest = next((folder for folder in store.committed(run_dir) if store.is_whole(folder)), None)
    if newest is None:
        raise store.none_is_whole(run_dir)
    best = store.read_commit(newest).state.get("best")
    removed = store.prune(run_dir, keep, whole_only=True, spared=int(best["step"]) if best else None)
    typer.echo(f"removed {len(removed)} steps" + (f": {', '.join(map(str, removed))}" if removed else ""))
