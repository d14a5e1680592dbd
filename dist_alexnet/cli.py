"""The short door: read the command line, call one function. Nothing heavy is imported before a command runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dist_alexnet.cli_checkpoint import checkpoint_app
from dist_alexnet.cli_judge import evaluate, predict
from dist_alexnet.cli_output import check_can_write, say_on_rank_0
from dist_alexnet.cli_shards import shards_app
from dist_alexnet.cli_track import track_app

app = typer.Typer(
    name="dist-alexnet",
    help="AlexNet on ImageNet across a cluster: the same run on every layout.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="The settings of a run.")
network_app = typer.Typer(help="Networks: the presets, or a YAML file of your own.")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(config_app, name="config")
app.add_typer(network_app, name="network")
app.add_typer(shards_app, name="shards")
app.add_typer(track_app, name="track")

Config = Annotated[str, typer.Argument(help="YAML file, such as configs/quickstart.yaml", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="settings laid over the file, such as data.batch_size=256", metavar="[KEY=VALUE]..."),
]
# the deepspeed launcher gives it to every process; LOCAL_RANK says the same
LocalRank = Annotated[int, typer.Option("--local_rank", hidden=True)]


@app.callback()
def _every_command(local_rank: LocalRank = 0) -> None:
    pass


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[
        str, typer.Option(help="auto: go on where the run stands; never: only a new run; or a checkpoint's path or URL")
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, say what would run, and stop")] = False,
    local_rank: LocalRank = 0,
) -> None:
    """Train: alone, or as one rank under torchrun, srun or the deepspeed launcher."""
    from dist_alexnet.config import load_config
    from dist_alexnet.environment import read_world

    if dry_run:
        from dist_alexnet.job import describe

        say_on_rank_0(describe(load_config(config, overrides or ())))
        return
    if read_world().world_size == 1:
        load_config(config, overrides or ())  # a mistake is said before torch is imported
    from dist_alexnet.train import train_together

    train_together(lambda: load_config(config, overrides or ()), resume)


app.command()(evaluate)
app.command()(predict)


@app.command("export")
def export_(
    checkpoint: Annotated[str, typer.Argument(help="path or URL of a step, or of a run: its newest good step")],
    form: Annotated[str, typer.Option("--format", help="safetensors, torchvision or onnx", show_default=False)],
    to: Annotated[Path, typer.Option("--to", help="the file to make; never overwritten", show_default=False)],
) -> None:
    """Write the weights of a checkpoint to a file of another format."""
    from dist_alexnet.transfer import export_checkpoint

    for line in export_checkpoint(checkpoint, form, to):
        typer.echo(line)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="weights: .safetensors, .pth, .npz or .caffemodel.h5")],
    form: Annotated[str, typer.Option("--format", help="torchvision, caffe or safetensors", show_default=False)],
    to: Annotated[Path, typer.Option("--to", help="the checkpoint's folder; never overwritten", show_default=False)],
    network: Annotated[
        str | None, typer.Option(help="a preset or a YAML file, where the file does not say", show_default=False)
    ] = None,
) -> None:
    """Make a checkpoint, for evaluate, of weights in a file of another format."""
    from dist_alexnet.transfer import import_weights

    for line in import_weights(file, form, network, to):
        typer.echo(line)


@app.command()
def attempts(run_dir: Annotated[Path, typer.Argument(help="run folder", metavar="RUN_DIR")]) -> None:
    """Every start of a run: when, where, why it ended, and the steps that it gained and lost."""
    from dist_alexnet.attempts import show

    show(run_dir)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="run folder", metavar="RUN_DIR", show_default=False)],
    to: Annotated[
        Path | None, typer.Option("--to", help="the page to write; RUN_DIR/report.html without it", show_default=False)
    ] = None,
    images: Annotated[
        int, typer.Option(help="pictures of each set that the network looks at, spread over it; 0: all", min=0)
    ] = 2000,
) -> None:
    """Write one self-contained HTML page that shows a run, and its pictures to RUN_DIR/pictures."""
    from dist_alexnet.report.story import report as write_report

    typer.echo(f"report {write_report(run_dir, to, images)}")


@app.command()
def doctor(
    config: Config,
    overrides: Overrides = None,
    shards: Annotated[int, typer.Option(help="shards of each set to open, spread over it; 0: all", min=0)] = 16,
    world_size: Annotated[
        int | None,
        typer.Option(help="alone: ranks that the run will have; one model group without it", min=1, show_default=False),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="also write the findings to this file; -: to stdout instead")
    ] = None,
    local_rank: LocalRank = 0,
) -> None:
    """Say what would fail, a line a check: alone, or on all ranks under the launcher of the run. Trains nothing."""
    check_can_write(json_file)
    from dist_alexnet.config import load_config
    from dist_alexnet.doctor.run import doctor as examine

    raise typer.Exit(examine(lambda: load_config(config, overrides or ()), shards, world_size, json_file))


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="run folder", metavar="RUN_DIR", show_default=False)],
    run_b: Annotated[Path, typer.Argument(help="run folder", metavar="RUN_DIR", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False,
) -> None:
    """The first step at which two runs differ in samples, loss or state. Exit code 0 equal, 1 not, 2 cannot compare."""
    from dist_alexnet.compare import compare as compare_runs
    from dist_alexnet.compare import show

    found = compare_runs(run_a, run_b)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        show(found)
    raise typer.Exit(0 if found.equal else 1)


@app.command()
def drill(
    config: Config,
    overrides: Overrides = None,
    kills: Annotated[int, typer.Option(help="how many faults", min=1)] = 12,
    seed: Annotated[int, typer.Option(help="start of what is drawn: faults, moments, victims")] = 0,
    ranks: Annotated[int, typer.Option(help="ranks, on this host", min=1)] = 2,
    to: Annotated[Path, typer.Option("--to", help="folder of the drill; the same again goes on in it")] = Path(
        "runs/drill"
    ),
    only: Annotated[str, typer.Option(help="kinds of faults, with commas; all that can strike without it")] = "",
    launch: Annotated[
        str | None,
        typer.Option(help="command that starts the ranks, up to `train`; torchrun on this host without it"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Run a config unbroken, then under faults until enough have struck. Exit code 0 where nothing is lost, else 1."""
    from dist_alexnet.drill.story import Asked, Drill, broken_off_by_signals

    kinds = tuple(kind for kind in only.split(",") if kind)
    asked = Asked(config, tuple(overrides or ()), kills, seed, ranks, to, launch, kinds)
    drilled = Drill(asked, lambda line: typer.echo(line, err=as_json))
    try:
        with broken_off_by_signals():
            drilled.run()
    finally:
        report = drilled.report()
        if as_json:
            typer.echo(json.dumps(report.as_dict(), indent=2))
        else:
            report.show()
    raise typer.Exit(0 if report.held and report.whole else 1)


@config_app.command("show")
def config_show(
    config: Config,
    overrides: Overrides = None,
    world_size: Annotated[
        int | None,
        typer.Option(
            help="ranks that the DeepSpeed settings are derived for; one model group without it",
            min=1,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print the resolved config and the DeepSpeed JSON derived from it, as two YAML documents."""
    from dist_alexnet.config import load_config, to_yaml
    from dist_alexnet.deepspeed_json import deepspeed_json

    loaded = load_config(config, overrides or ())
    world_size = world_size or loaded.parallel.group_ranks
    derived = json.dumps(deepspeed_json(loaded, world_size), indent=2)
    typer.echo(f"{to_yaml(loaded).rstrip()}\n---  # DeepSpeed, world size {world_size}\n{derived}")


@network_app.command("show")
def network_show(
    name: Annotated[str, typer.Argument(help="a preset, or the path of a YAML file", metavar="NAME|FILE")],
    layout: Annotated[
        str | None, typer.Option(help="columns,replicas of a model group, such as 2,1", show_default=False)
    ] = None,
    num_classes: Annotated[int, typer.Option(help="classes of the last layer", min=1)] = 1000,
    width: Annotated[float, typer.Option(help="multiplier of every layer's width but the last one's")] = 1.0,
    image_size: Annotated[
        int | None, typer.Option(help="side in pixels; the network's own without it", min=1, show_default=False)
    ] = None,
    exchange: Annotated[str, typer.Option(help="fp32, bf16 or fp16: activations on the wire")] = "fp32",
    batch_size: Annotated[int, typer.Option(help="images of a model group in a step", min=1)] = 128,
) -> None:
    """Print layers, shapes, parameters and multiplications; with --layout, what each rank sends."""
    from dist_alexnet.network.show import layers_text, layout_text, read_layout
    from dist_alexnet.network.sizes import network_for
    from dist_alexnet.network.spec import load_spec

    network = network_for(load_spec(name), num_classes=num_classes, width=width, image_size=image_size)
    ranks = None if layout is None else layout_text(network, read_layout(layout, network), batch_size, exchange)
    typer.echo(layers_text(network) + ("" if ranks is None else f"\n\n{ranks}"))
