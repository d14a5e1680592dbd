"""`dist-alexnet shards`: building shard sets, indexing those of others, and looking into them."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shards.build import Progress
    from shards.index import ShardIndex
    from shards.sources.source import Source
    from shards.verify import Finding

shards_app = typer.Typer(help="Shard sets: plain WebDataset tars and their index.")
build_app = typer.Typer(help="Write tars and an index from pictures.")
shards_app.add_typer(build_app, name="build")

To = Annotated[str, typer.Option("--to", help="folder of the shard set: a path or a URL", show_default=False)]
SamplesPerShard = Annotated[int, typer.Option(help="samples in one tar", min=1)]
Seed = Annotated[int, typer.Option(help="seed of the shuffle before writing")]
Split = Annotated[str, typer.Option(help="name of the split: the tars are <split>-NNNNNN.tar")]
OneSplit = Annotated[str | None, typer.Option(help="train or val; both without it", show_default=False)]
BuildWorkers = Annotated[int, typer.Option("--workers", help="processes that write tars; 0: two a core", min=0)]
Resize = Annotated[
    int | None, typer.Option(help="make the shorter side this long, as the paper; bytes are kept without", metavar="PX")
]
Square = Annotated[
    int | None, typer.Option(help="cut the centre square, made this long, as cuda-convnet2", metavar="PX")
]
Quality = Annotated[
    int | None, typer.Option(help="JPEG quality of what --resize or --square makes; 95 without it", show_default=False)
]
ShardSet = Annotated[str, typer.Argument(help="index of a split, or a pattern over its shards", show_default=False)]
Shard = Annotated[str | None, typer.Option(help="only this shard, by its file name", show_default=False)]
ReadWorkers = Annotated[int, typer.Option(help="processes that read; 0: one a core", min=0)]


@build_app.command("imagenet")
def shards_build_imagenet(
    to: To,
    train: Annotated[str | None, typer.Option(help="ILSVRC2012_img_train.tar", show_default=False)] = None,
    val: Annotated[str | None, typer.Option(help="ILSVRC2012_img_val.tar", show_default=False)] = None,
    devkit: Annotated[str | None, typer.Option(help="ILSVRC2012_devkit_t12.tar.gz", show_default=False)] = None,
    resize: Resize = None,
    square: Square = None,
    quality: Quality = None,
    samples_per_shard: SamplesPerShard = 1000,
    seed: Seed = 0,
    workers: BuildWorkers = 0,
) -> None:
    """From the ILSVRC 2012 downloads as they are: nothing is unpacked; classes are the wnids, sorted."""
    from shards.errors import InputError
    from shards.sources.imagenet import ImageNetSource

    splits = [split for split, archive in {"train": train, "val": val}.items() if archive is not None]
    if not splits:
        raise InputError("no archive is named: give --train ILSVRC2012_img_train.tar, --val ILSVRC2012_img_val.tar")
    source = _resized(ImageNetSource(train, val, devkit), resize, square, quality)
    _build(source, splits, to, samples_per_shard, seed, workers)


@build_app.command("cifar")
def shards_build_cifar(
    src: Annotated[str, typer.Argument(help="cifar-10-binary.tar.gz or cifar-100-binary.tar.gz", show_default=False)],
    to: To,
    split: OneSplit = None,
    samples_per_shard: SamplesPerShard = 1000,
    seed: Seed = 0,
    workers: BuildWorkers = 0,
) -> None:
    """From the published CIFAR archives, in their binary version; pixels are kept."""
    from shards.sources.cifar import CifarSource

    _build(CifarSource(src), [split] if split else ["train", "val"], to, samples_per_shard, seed, workers)


@build_app.command("tars")
def shards_build_tars(
    src: Annotated[str, typer.Argument(help="index of a set, or a pattern over its tars", show_default=False)],
    to: To,
    split: Split = "train",
    resize: Resize = None,
    square: Square = None,
    quality: Quality = None,
    samples_per_shard: SamplesPerShard = 1000,
    seed: Seed = 0,
    workers: BuildWorkers = 0,
) -> None:
    """From another shard set: shuffled anew, in tars of another size, or with smaller pictures."""
    from shards.sources.tars import TarsSource

    source = _resized(TarsSource(src), resize, square, quality)
    _build(source, [split], to, samples_per_shard, seed, workers)


@build_app.command("parquet")
def shards_build_parquet(
    src: Annotated[str, typer.Argument(help="folder of train-*.parquet, validation-*.parquet", show_default=False)],
    to: To,
    split: OneSplit = None,
    resize: Resize = None,
    square: Square = None,
    quality: Quality = None,
    samples_per_shard: SamplesPerShard = 1000,
    seed: Seed = 0,
    workers: BuildWorkers = 0,
    spool: Annotated[
        Path | None, typer.Option(help="folder with room for a copy of the pictures meanwhile", show_default=False)
    ] = None,
) -> None:
    """From parquet files as on the Hugging Face hub: columns image{bytes, path} and label."""
    from shards.sources.parquet import ParquetSource
    from shards.sources.spool import spool_folder

    for one in [split] if split else ["train", "val"]:
        with spool_folder(spool) as folder:
            source = _resized(ParquetSource(src, folder), resize, square, quality)
            _build(source, [one], to, samples_per_shard, seed, workers)


@build_app.command("folder")
def shards_build_folder(
    src: Annotated[str, typer.Argument(help="folder with one folder of pictures a class")],
    to: To,
    split: Split = "train",
    resize: Resize = None,
    square: Square = None,
    quality: Quality = None,
    samples_per_shard: SamplesPerShard = 1000,
    seed: Seed = 0,
    workers: BuildWorkers = 0,
) -> None:
    """From an image folder; classes are the folders' names, sorted."""
    from shards.sources.folder import FolderSource

    _build(_resized(FolderSource(src), resize, square, quality), [split], to, samples_per_shard, seed, workers)


@build_app.command("bundled")
def shards_build_bundled(
    src: Annotated[str, typer.Argument(help="which bundled pictures: digits", metavar="digits")],
    to: To,
    split: OneSplit = None,
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
    pattern: Annotated[str, typer.Argument(help="such as 'URL/train-{000000..000010}.tar'; several joined by ::")],
    to: Annotated[str | None, typer.Option(help="folder of the index; beside the tars without it")] = None,
    split: Annotated[
        str | None, typer.Option(help="name of the index; what stands before the number without it", show_default=False)
    ] = None,
    workers: ReadWorkers = 0,
) -> None:
    """Write the index of tars that others made. Broken off, it goes on where it was."""
    from shards.indexing import index_shards
    from shards.processes import cores

    index = index_shards(pattern, to, _progress("shards"), workers=workers or cores(), split=split)
    _say_shard_set(index, to or index.folder)


@shards_app.command("info")
def shards_info(
    index: Annotated[str, typer.Argument(help="index of a split, or a pattern over its shards")],
    statistics: Annotated[
        bool, typer.Option("--statistics", help="also compute mean and colours, and write them to a file")
    ] = False,
    to: Annotated[str | None, typer.Option(help="folder of that file; beside the index without it")] = None,
    resize: Annotated[int, typer.Option(help="side of the mean image in pixels: data.resize of the run", min=1)] = 256,
    workers: Annotated[int, typer.Option(help="processes that decode; 0: one a core", min=0)] = 0,
    order: Annotated[bool, typer.Option("--order", help="also say how well a run's order mixes this set")] = False,
    batch_size: Annotated[int, typer.Option(help="--order: data.batch_size of the run", min=1)] = 1024,
    lanes: Annotated[
        int | None, typer.Option(help="--order: data.lanes of the run; auto without it", min=1, show_default=False)
    ] = None,
    window: Annotated[int, typer.Option(help="--order: data.window_shards of the run", min=0)] = 8,
    nodes: Annotated[int, typer.Option(help="--order: nodes of the run", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="--order: run.seed of the run")] = 0,
) -> None:
    """Say what is in a shard set; with --statistics, read it once for data.mean and data.augment.colour; with --order,
    how a run would read it.
    """
    from shards.index import read_index
    from shards.processes import cores
    from shards.storage import parent, shown

    found = read_index(index)
    for line in _facts(found):
        typer.echo(line)
    if order:
        _say_order(found, batch_size, lanes, window, nodes, seed)
    if not statistics:
        return
    from dist_alexnet.data.measure import measure
    from dist_alexnet.data.statistics import check_writable, write_statistics

    folder = parent(index)[0] if to is None else to
    check_writable(folder)
    facts, measured = measure(found, resize, workers or cores(), _progress("pictures"))
    url = write_statistics(folder, found.split, facts, measured)
    typer.echo(f"mean        R, G, B {_numbers(measured.mean)}")
    typer.echo(f"colours     standard deviations {_numbers(measured.deviations)}")
    if facts["undecoded"]:
        typer.echo(f"left out    {facts['undecoded']} pictures that do not decode")
    typer.echo(f"statistics  {shown(url)}")


@shards_app.command("verify")
def shards_verify(
    index: ShardSet,
    workers: ReadWorkers = 0,
    repair: Annotated[
        bool, typer.Option("--repair", help="where the tars are whole, take them for right: index them anew")
    ] = False,
) -> None:
    """Read a whole set: are its tars what the index says, do its pictures decode? Exit code 1 where not."""
    from dist_alexnet.data.check import undecodable
    from shards.index import read_index
    from shards.processes import cores
    from shards.verify import verify

    if repair:
        _check_repairable(index)
    found = read_index(index)
    findings = verify(found, undecodable, workers or cores(), _progress("shards"))
    for finding in findings:
        typer.echo(f"{finding.shard}{'' if finding.key is None else f' {finding.key}'}: {finding.what}")
    bad = {finding.shard for finding in findings}
    typer.echo(f"{found.split}: {len(found.shards) - len(bad)} of {len(found.shards)} shards are right")
    if repair and any(finding.key is None for finding in findings):
        _repair(found, findings, index, workers or cores())
        findings = [finding for finding in findings if finding.key is not None]
    if findings:
        raise typer.Exit(1)


def _check_repairable(index: str) -> None:
    """InputError before hours are spent on reading."""
    from shards.errors import InputError
    from shards.names import INDEX_SUFFIX
    from shards.storage import check_writable, parent, shown

    if not index.endswith(INDEX_SUFFIX):
        raise InputError(
            f"--repair writes the index of a whole set, {shown(index)} names some of its tars: name the index"
        )
    check_writable(parent(index)[0])


def _repair(found: "ShardIndex", findings: "Sequence[Finding]", index: str, workers: int) -> None:
    """Index the tars as they are. InputError, and the index as it was, where one is not whole or looks rotten."""
    from shards.errors import InputError
    from shards.indexing import index_tars
    from shards.storage import parent, shown

    changed = {finding.shard for finding in findings if finding.key is None}
    for finding in findings:
        if finding.key is not None and finding.shard in changed:
            raise InputError(
                f"{finding.shard} has changed, and its picture {finding.key!r} does not decode: bring the right file "
                "back; or, if it was always so, take the tars as they are with dist-alexnet shards index"
            )
    place = parent(index)[0]
    names = [row.name for row in found.shards]
    made = index_tars(found.folder, found.split, names, place, _progress("shards"), workers)
    _say_shard_set(made, place)
    if made.digest != found.digest:
        typer.echo(
            f"the set is another one now: runs that were begun on the one of {shown(index)} do not go on with it"
        )


@shards_app.command("ls")
def shards_ls(
    index: ShardSet,
    label: Annotated[int | None, typer.Option("--class", help="only this class", min=0, show_default=False)] = None,
    shard: Shard = None,
) -> None:
    """One line a sample: number, key, class, bytes of the picture, shard."""
    import numpy as np

    from shards.verify import keys_of

    found = _read_set(index, shard)
    labels = found.samples["label"]
    chosen = np.arange(len(found)) if label is None else np.flatnonzero(labels == label)
    for number, key in keys_of(found, chosen):
        row = found.samples[number]
        name = row["label"] if found.classes is None else f"{row['label']} {found.classes[row['label']]}"
        typer.echo(f"{number}\t{key}\t{name}\t{row['length']}\t{found.shards[row['shard']].name}")


@shards_app.command("cat")
def shards_cat(
    index: ShardSet,
    key: Annotated[str, typer.Argument(help="key of the sample", show_default=False)],
    to: Annotated[Path | None, typer.Option(help="file; standard output without it", show_default=False)] = None,
    shard: Shard = None,
) -> None:
    """Write out the picture of one sample, as its bytes are."""
    from shards.errors import InputError
    from shards.reader import ShardReader
    from shards.storage import write_atomic
    from shards.verify import find_key

    if to is None and sys.stdout.isatty():
        raise InputError("a picture is no text for a terminal: give --to FILE, or lead the output into a file")
    found = _read_set(index, shard)
    (sample,) = ShardReader(found).read([find_key(found, key)])
    if to is None:
        sys.stdout.buffer.write(sample.jpeg)
    else:
        write_atomic(str(to), sample.jpeg)


def _read_set(index: str, shard: str | None) -> "ShardIndex":
    """The index, or the part of it that is of one shard."""
    from shards.index import read_index

    found = read_index(index)
    return found if shard is None else found.select([shard])


def _say_order(index: "ShardIndex", batch_size: int, lanes: int | None, window: int, nodes: int, seed: int) -> None:
    from shards.errors import InputError
    from shards.mixing import mixing, reading
    from shards.order import Order, auto_lanes

    lanes = auto_lanes(batch_size) if lanes is None else lanes
    if batch_size % lanes:
        raise InputError(f"--lanes is {lanes}, expected a divisor of --batch-size ({batch_size})")
    order = Order(index.samples_per_shard, seed, lanes, window)
    mixed, read = mixing(index, order, batch_size), reading(index, order, batch_size, nodes)
    whole = sum(row.bytes for row in index.shards)
    for line in (
        f"order       batch {batch_size}, {lanes} lanes, windows of {window} shards; in brackets a full permutation's",
        "classes     {:.1f} in a batch ({:.1f})".format(*mixed.classes),
        "evenness    a class's count varies by {:.2f} from batch to batch ({:.2f})".format(*mixed.repeat),
        "neighbours  {:.3f} of an epoch apart in the next one ({:.3f})".format(*mixed.distance),
        "together    {:.2%} of them in one batch again ({:.2%})".format(*mixed.together),
        f"a node      of {nodes} reads {read.cached_bytes} bytes an epoch with a cache ({read.shards} whole shards, "
        f"{read.cached_bytes / whole:.1%} of the set), {read.ranged_bytes} by ranges",
        f"cache       at least {read.window_bytes} bytes: {read.window_shards} shards are read at a time",
    ):
        typer.echo(line)


def _facts(index: "ShardIndex") -> list[str]:
    """What an index says of its set, in lines."""
    import numpy as np

    classes = np.bincount(index.samples["label"], minlength=index.num_classes)
    return [
        f"split       {index.split}",
        f"samples     {len(index)}",
        f"classes     {index.num_classes}",
        f"per class   min {classes.min()}, median {np.median(classes):g}, max {classes.max()}",
        f"shards      {len(index.shards)}",
        f"bytes       {sum(row.bytes for row in index.shards)}",
    ]


def _numbers(values: "Sequence[float]") -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _build(source: "Source", splits: list[str], to: str, samples_per_shard: int, seed: int, workers: int = 1) -> None:
    from shards.build import build_shards

    for split in splits:
        progress = _progress(f"{split} samples")
        index = build_shards(
            source, split, to, samples_per_shard=samples_per_shard, seed=seed, workers=workers, progress=progress
        )
        _say_shard_set(index, to)


def _resized(source: "Source", resize: int | None, square: int | None, quality: int | None) -> "Source":
    from shards.errors import InputError
    from shards.sources.picture import JPEG_QUALITY
    from shards.sources.resized import ResizedSource

    side = resize if resize is not None else square
    if side is None:
        if quality is not None:
            raise InputError("--quality is for pictures that are made anew: give --resize or --square as well")
        return source
    if resize is not None and square is not None:
        raise InputError(f"--resize {resize} and --square {square} are two ways to make a picture: give one of them")
    return ResizedSource(source, side, square is not None, JPEG_QUALITY if quality is None else quality)


def _say_shard_set(index: "ShardIndex", folder: str) -> None:
    from shards.index import index_url
    from shards.storage import shown

    typer.echo(
        f"{index.split}: samples {len(index)}, classes {index.num_classes}, shards {len(index.shards)}, "
        f"index {shown(index_url(folder, index.split))}"
    )


def _progress(what: str) -> "Progress | None":
    """A bar, a counter and the time left in a line that is rewritten on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None
    begin_s = time.monotonic()

    def show(done: int, total: int) -> None:
        left_s = (time.monotonic() - begin_s) * (total - done) / max(done, 1)
        text = f"\r{what} [{'#' * (30 * done // total):30}] {done}/{total}, {left_s:.0f} s left   "
        print(text, end="\n" if done == total else "", file=sys.stderr, flush=True)

    return show
