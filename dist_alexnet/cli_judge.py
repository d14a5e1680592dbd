"""`dist-alexnet evaluate` and `predict`: what trained networks make of a set, and of single pictures."""

from pathlib import Path
from typing import Annotated

import typer

from dist_alexnet.cli_output import check_can_write, rank, say_on_rank_0, write_json

Views = Annotated[int, typer.Option(help="1: the centre; 10: corners, centre and their mirrors, averaged")]


def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            help="path or URL of a step, or of a run (its newest good step), or a file that --probabilities wrote; "
            "several are averaged",
            metavar="CHECKPOINT...",
            show_default=False,
        ),
    ],
    shards: Annotated[str, typer.Option(help="index or pattern of the validation shards", show_default=False)],
    views: Views = 1,
    weights: Annotated[
        str | None,
        typer.Option(help="of each checkpoint in the average, with commas; equal without it", metavar="W,.."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="JSON of right classes in place of the set's, such as ReaL's", metavar="FILE")
    ] = None,
    probabilities: Annotated[
        str | None, typer.Option(help="write what was averaged to this new .npz file", metavar="FILE")
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="also show the best and the worst classes")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the result to this file")] = None,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
) -> None:
    """Loss, top-1 and top-5 of a checkpoint, or of the average of several, over every image exactly once."""
    _check_views(views)
    check_can_write(json_file)
    numbers = None if weights is None else _numbers(weights)
    from dist_alexnet.judging.judge import Judgement, judge
    from dist_alexnet.judging.show import lines, show_classes

    def told(result: Judgement) -> None:
        for line in lines(result):
            typer.echo(line)
        if per_class:
            show_classes(result.figures)
        if json_file is not None:
            write_json(json_file, result.as_dict())

    judge(checkpoints, shards, views, numbers, labels, probabilities, told)


def predict(
    checkpoint: Annotated[str, typer.Argument(help="path or URL of a step, or of a run: its newest good step")],
    images: Annotated[list[str], typer.Argument(help="files of pictures", metavar="IMAGE...", show_default=False)],
    views: Views = 1,
    top: Annotated[int, typer.Option(help="how many of the likeliest classes to show", min=1)] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the result to this file")] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="also draw the images with their likeliest classes, to this .png", metavar="FILE"),
    ] = None,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,
) -> None:
    """The likeliest classes of pictures, with their probabilities."""
    _check_views(views)
    check_can_write(json_file)
    check_can_write(picture, "--picture")
    _check_png(picture)
    from dist_alexnet.predict import draw, lines
    from dist_alexnet.predict import predict as predict_all

    result = predict_all(checkpoint, images, views)
    for line in lines(result, top):
        say_on_rank_0(line)
    if json_file is not None and rank() == 0:
        write_json(json_file, result.as_dict(top))
    if picture is not None and rank() == 0:
        draw(result, picture)


def _check_views(views: int) -> None:
    from shards.errors import InputError

    if views not in (1, 10):
        raise InputError(f"--views is {views}, expected 1 (the centre) or 10 (corners, centre and their mirrors)")


def _check_png(picture: Path | None) -> None:
    from shards.errors import InputError

    if picture is not None and picture.suffix.lower() != ".png":
        raise InputError(f"--picture is {picture}, expected a name that ends in .png: what is written is a PNG")


def _numbers(text: str) -> list[float]:
    from shards.errors import InputError

    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise InputError(
            f"--weights is {text!r}, expected numbers with commas between, such as 0.5,0.25,0.25"
        ) from None
