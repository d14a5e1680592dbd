"""`python -m launch`: starts runs, here or on a cluster."""

import os
import shlex
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dist_alexnet.config import load_config
from dist_alexnet.crash import exit_code_of
from launch import submit
from shards.errors import InputError

app = typer.Typer(
    name="launch",
    help="Starts runs: on this host, or as a job of Slurm.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path, typer.Argument(help="YAML file, such as configs/quickstart.yaml", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="settings laid over the file, such as data.batch_size=256", metavar="[KEY=VALUE]..."),
]
Text = Annotated[str | None, typer.Option(show_default=False)]
REQUEUES = 20  # of a job that stands alone


class Style(StrEnum):
    torchrun = "torchrun"
    srun = "srun"


@app.callback()
def _commands() -> None:
    pass


@app.command()
def local(
    config: Config,
    overrides: Overrides = None,
    ranks: Annotated[
        int | None, typer.Option(help="processes; as many as there are GPUs, or one", min=1, show_default=False)
    ] = None,
    max_restarts: Annotated[int, typer.Option(help="how often ranks are started again when one dies", min=0)] = 0,
) -> None:
    """Train on this host, under torchrun."""
    settings = [f"PYTHON={sys.executable}", f"MAX_RESTARTS={max_restarts}"]
    settings += [] if ranks is None else [f"NPROC_PER_NODE={ranks}"]
    script = str(Path(__file__).with_name("torchrun.sh"))
    sys.stdout.flush()
    os.execvp("env", ["env", *settings, "bash", script, str(config), *(overrides or ())])


@app.command()
def hosts(
    hostfile: Annotated[Path, typer.Argument(help="a line a host: name slots=N", show_default=False)],
    config: Config,
    overrides: Overrides = None,
    ssh: Annotated[str, typer.Option(help="the ssh client, with options such as 'ssh -F my.conf'")] = "ssh",
    endpoint: Annotated[
        str | None,
        typer.Option(help="host:port where they meet; the first host, and any port", show_default=False),
    ] = None,
    max_restarts: Annotated[int, typer.Option(help="how often ranks are started again when one dies", min=0)] = 0,
    doctor: Annotated[bool, typer.Option("--doctor", help="look at hosts and data, and train nothing")] = False,
) -> None:
    """Train on the hosts of a hostfile, by ssh, under torchrun."""
    from launch.hosts import launch

    command = "doctor" if doctor else "train"
    raise typer.Exit(launch(hostfile, config, overrides or (), ssh, endpoint, max_restarts, command))


@app.command()
def folder(config: Config, overrides: Overrides = None) -> None:
    """Print the run folder of a config."""
    typer.echo(load_config(config, overrides or ()).run_folder.absolute())


@app.command()
def slurm(
    config: Config,
    overrides: Overrides = None,
    *,
    nodes: Annotated[int, typer.Option(help="nodes", min=1, show_default=False)],
    time: Annotated[str, typer.Option(help="limit of one job, as Slurm writes it: 8:00:00, 2-0", show_default=False)],
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs of a node, a rank each", min=1)] = None,
    ranks_per_node: Annotated[int | None, typer.Option(help="ranks of a node, where there are no GPUs", min=1)] = None,
    cpus_per_rank: Annotated[
        int | None, typer.Option(help="CPUs of a rank; 1 + data.workers without it", min=1, show_default=False)
    ] = None,
    style: Annotated[
        Style, typer.Option(help="torchrun: it starts the ranks of a node; srun: each rank is a task of Slurm")
    ] = Style.torchrun,
    partition: Text = None,
    account: Text = None,
    qos: Text = None,
    constraint: Text = None,
    option: Annotated[
        list[str] | None, typer.Option(help="any other of sbatch, such as --option=--exclusive (may be repeated)")
    ] = None,
    chain: Annotated[int, typer.Option(help="jobs, each after the end of the one before", min=1)] = 1,
    array: Annotated[int, typer.Option(help="the same as tasks of one array, one at a time", min=1)] = 1,
    max_requeues: Annotated[
        int | None,
        typer.Option(
            help=f"how often a job goes back into the queue; {REQUEUES}, or 0 in a chain or array",
            min=0,
            show_default=False,
        ),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(help="how often torchrun starts ranks again without leaving the nodes", min=0)
    ] = 1,
    check_data: Annotated[bool, typer.Option(help="look at data and network before, from this host")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the script; write and submit nothing")] = False,
) -> None:
    """Train as a job of Slurm that saves before its time is over and puts itself back into the queue."""
    named = {"partition": partition, "account": account, "qos": qos, "constraint": constraint}
    if gpus_per_node is None and ranks_per_node is None:
        raise InputError("neither --gpus-per-node nor --ranks-per-node is given: say how many ranks a node has")
    if chain > 1 and array > 1:
        raise InputError(f"--chain {chain} and --array {array} say the same in two ways: give one of them")
    alone = chain == array == 1
    wish = submit.Wish(
        nodes=nodes,
        ranks_per_node=ranks_per_node or gpus_per_node or 1,
        time=time,
        gpus_per_node=gpus_per_node or 0,
        style=style.value,
        chain=chain,
        array=array,
        max_requeues=(REQUEUES if alone else 0) if max_requeues is None else max_requeues,
        max_restarts=max_restarts,
        cpus_per_rank=cpus_per_rank or 1 + load_config(config, overrides or ()).data.workers,
        options=(*(f"--{key}={value}" for key, value in named.items() if value is not None), *(option or ())),
    )
    checked = submit.check(config, list(overrides or ()), wish, check_data)
    if dry_run:
        where = checked.run_folder.absolute() / "launches" / "NNNN"
        typer.echo(submit.render(checked, list(overrides or ()), wish, where), nl=False)
        return
    _say(submit.submit(config, list(overrides or ()), wish, checked))


def _say(done: submit.Submitted) -> None:
    typer.echo(f"submitted   job {' '.join(done.jobs)}")
    typer.echo(f"run folder  {done.run_folder}")
    typer.echo(f"script      {done.script}")
    for log in done.logs:
        typer.echo(f"log         {log}")
    typer.echo(f"attempts    dist-alexnet attempts {shlex.quote(str(done.run_folder))}")
    stop = f"touch {shlex.quote(str(done.run_folder / 'stop'))}"
    if len(done.logs) == 1:
        typer.echo(f"stop it     {stop}   (it saves; it is not put back)")
    else:
        typer.echo(f"stop all    scancel --state=PENDING {' '.join(done.jobs)}; {stop}   (the one that runs saves)")


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code; what went wrong is on stderr."""
    try:
        return int(app(args=list(args) or ["--help"], prog_name="python -m launch", standalone_mode=False) or 0)
    except typer.Abort:  # Ctrl-C
        return 130
    except Exception as error:
        return exit_code_of(error, "python -m launch")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
