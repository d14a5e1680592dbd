"""`dist-alexnet checkpoint`: what a run has saved, whether it is whole, and making room."""

from typing import Annotated

import typer

checkpoint_app = typer.Typer(help="The checkpoints of a run.")
Run = Annotated[str, typer.Argument(help="run folder, or the URL of a run's checkpoints", metavar="RUN_DIR|URL")]


@checkpoint_app.command("ls")
def ls(run: Run) -> None:
    """One line a checkpoint, newest first: step, generation, size, layout, top-1 of its best evaluation so far."""
    from dist_alexnet.checkpoint.commit import read_commit
    from dist_alexnet.checkpoint.finding import committed_in, root_named

    for folder in committed_in(root_named(run)):
        commit = read_commit(folder)
        size_mb = sum(record.bytes for record in commit.files) / 1e6
        best = commit.state.get("best")
        judged = f"best top-1 {best['top1']:.4f} at step {best['step']}" if best else "not evaluated yet"
        axes = {key: value for key, value in commit.layout.items() if key != "zero_stage"}
        layout = " x ".join(f"{value} {key}" for key, value in axes.items())
        if "zero_stage" in commit.layout:
            layout += f", ZeRO stage {commit.layout['zero_stage']}"
        typer.echo(f"step {commit.step}  generation {commit.generation}  {size_mb:.1f} MB  {layout}  {judged}")


@checkpoint_app.command("verify")
def verify(run: Run) -> None:
    """Check every file of every checkpoint against its COMMIT, by size and sha256. Exit code 2 if one is not whole."""
    from dist_alexnet.checkpoint.finding import committed_in, root_named
    from dist_alexnet.checkpoint.store import check
    from dist_alexnet.errors import CheckpointError

    root = root_named(run)
    folders = committed_in(root)
    damaged = []
    for folder in folders:
        try:
            check(folder)
            typer.echo(f"good     {folder}")
        except CheckpointError as error:
            damaged.append(folder)
            typer.echo(f"damaged  {folder}: {error}")
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} of {len(folders)} checkpoints in {root} are not whole: a run goes on from the newest "
            "that is; bring the files back, or take the folders away"
        )


@checkpoint_app.command("prune")
def prune(
    run: Run, keep: Annotated[int, typer.Option(help="how many of the newest whole ones stay", min=1)] = 1
) -> None:
    """Remove all but the newest whole checkpoints, and the one with the best evaluation."""
    from dist_alexnet.checkpoint import pruning
    from dist_alexnet.checkpoint.commit import read_commit
    from dist_alexnet.checkpoint.finding import committed_in, root_named
    from dist_alexnet.checkpoint.store import is_whole, none_is_whole

    root = root_named(run)
    newest = next((folder for folder in committed_in(root) if is_whole(folder)), None)
    if newest is None:
        raise none_is_whole(root)
    best = read_commit(newest).state.get("best")
    removed = pruning.prune(root, keep, whole_only=True, spared=int(best["step"]) if best else None)
    typer.echo(f"removed {len(removed)} steps" + (f": {', '.join(map(str, removed))}" if removed else ""))
