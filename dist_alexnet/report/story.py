"""`dist-alexnet report`: one page that shows a run, and asks nobody for anything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dist_alexnet.crash import say_on_first_rank
from dist_alexnet.environment import read_world
from dist_alexnet.errors import LayoutError
from dist_alexnet.judging.figures import wilson
from dist_alexnet.parallel.layout import Layout
from dist_alexnet.parallel.mesh import make_mesh
from dist_alexnet.parallel.start import distributed
from dist_alexnet.pictures.canvas import FOLDER
from dist_alexnet.pictures.curves import curve_svg, draw_curves, panels_of
from dist_alexnet.report.facts import Facts, attempt_rows, bad_samples, facts_of, header, places, state_of
from dist_alexnet.report.look import Looked, look
from dist_alexnet.report.parts import (
    Part,
    batch_part,
    classes_part,
    confusion_part,
    filters_part,
    neighbours_part,
    predictions_part,
)
from dist_alexnet.trained import Trained, load_trained
from shards import local
from shards.errors import InputError
from shards.index import ShardIndex, read_index

IMAGES = 2000  # of each set that the network looks at
TEMPLATE = "page.html.jinja"

T = TypeVar("T")


def report(run_folder: Path, to: Path | None = None, images: int = IMAGES) -> Path:
    """Write the page of a run, by default to <run folder>/report.html, and its pictures to <run folder>/pictures.

    images: at how many pictures of the validation set, and as many of the training set, the network looks (0: all).
    What is missing (a checkpoint, a validation set) is said on the page. The page appears whole, or the old one stays.
    Raises RunFolderError, LayoutError under a launcher, InputError where it cannot be written, StorageFault.
    """
    facts = facts_of(run_folder)
    to = run_folder / "report.html" if to is None else to
    if to.is_dir() or not to.absolute().parent.is_dir():
        raise InputError(f"--to {to} cannot be written: give a file name in a folder that exists")
    if to.suffix.lower() not in (".html", ".htm"):  # the files of a run lie beside it
        raise InputError(f"--to is {to}, expected a name that ends in .html: what is written is a page")
    world_size = read_world().world_size
    if world_size > 1:
        raise LayoutError(f"world size is {world_size}, expected 1: a report is made by one process, without launcher")
    try:
        (run_folder / FOLDER).mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{run_folder / FOLDER} cannot be written ({error.strerror}): pictures go there; copy the run folder to "
            "where you may write"
        ) from error
    with distributed(read_world()) as device:
        values = {**_from_files(facts), **_from_network(facts, images, device)}
    page = page_of(values)
    try:
        local.write(to, page.encode(errors="replace"))  # a name of a file may be no text
    except OSError as error:
        raise InputError(f"--to {to} cannot be written: {error.strerror}") from error
    return to


def page_of(values: dict[str, Any]) -> str:
    """The page. Every word that comes from outside is escaped by the template engine."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(TEMPLATE).render(values)


def _from_files(facts: Facts) -> dict[str, Any]:
    draw_curves(facts.lines, facts.restarts, facts.folder / FOLDER / "report-curves.png")
    curves = [Markup(curve_svg(panel, facts.lines, facts.restarts)) for panel in panels_of(facts.lines)]
    bad, worst, first = bad_samples(facts)
    return {
        "name": facts.config.run.name,
        "state": state_of(facts),
        "curves": curves or "Nothing has been logged yet.",
        "restarts": len(facts.restarts),
        "attempts": attempt_rows(facts),
        "bad": bad,
        "worst_shards": worst,
        "bad_samples": first,
        "places": places(facts),
    }


def _from_network(facts: Facts, images: int, device: torch.device) -> dict[str, Any]:
    """The parts for which the newest checkpoint and the sets are needed; a sentence in place of what cannot be had."""
    folder, data = facts.folder / FOLDER, facts.config.data
    val = _index(data.val, "data.val is not set, so this run has no validation set.")
    train = _index(data.train, "data.train is not set.")
    train = train.without(data.exclude) if isinstance(train, ShardIndex) else train
    values: dict[str, Any] = {"verdict": _verdict(facts, val), "of_images": "", "header": header(facts)}
    if not isinstance(val, str):
        values["header"].append(("digest of the validation set", val.digest))
    mesh = make_mesh(Layout(data=dist.get_world_size()), device.type)
    trained = _or_why(lambda: load_trained(facts.folder, mesh, device))
    if isinstance(trained, str):
        why = f"There is no checkpoint to look into: {trained}."
        return {
            **values,
            **dict.fromkeys(("filters", "batch", "predictions", "neighbours", "confusion", "classes"), why),
        }
    parameters = f"{trained.module.network.parameters:,}, of step {trained.found.commit.step:,}"
    values["header"].append(("parameters", parameters))
    values["filters"] = filters_part(trained, folder)
    values["batch"] = train if isinstance(train, str) else batch_part(trained, train, folder)
    if isinstance(val, str):
        return {**values, **dict.fromkeys(("predictions", "neighbours", "confusion", "classes"), val)}
    names = trained.classes or val.classes
    seen = _looked(trained, val, images, device, "validation")
    if isinstance(seen, str):
        return {**values, **dict.fromkeys(("predictions", "neighbours", "confusion", "classes"), seen)}
    values |= {
        "of_images": f"{_of(images, len(val))} pictures" + (", spread over it" if 0 < images < len(val) else ""),
        "predictions": predictions_part(trained, seen, names, folder),
        "confusion": confusion_part(seen, names, folder),
        "classes": classes_part(seen, names),
        "neighbours": train,
    }
    if not isinstance(train, str):
        known = _looked(trained, train, images, device, "training")
        values["neighbours"] = known if isinstance(known, str) else neighbours_part(trained, seen, known, names, folder)
    return values


def _looked(trained: Trained, index: ShardIndex, images: int, device: torch.device, of: str) -> Looked | str:
    say_on_first_rank(f"looking at {_of(images, len(index))} {of} pictures")
    found = _or_why(lambda: look(trained, index, images, device))
    return f"{found[0].upper()}{found[1:]}." if isinstance(found, str) else found


def _verdict(facts: Facts, val: ShardIndex | str) -> Part | str:
    if not facts.evaluations:
        return "No evaluation has been made" + (f": {val}" if isinstance(val, str) else " yet.")
    last = facts.evaluations[-1]
    best = max(facts.evaluations, key=lambda line: float(line["val/top1"]))
    speeds = [float(line["speed/images_per_s"]) for line in facts.lines if "speed/images_per_s" in line]
    figures = []
    for key, name in (("val/top1", "top-1"), ("val/top5", "top-5")):
        part = float(last[key])
        between = None if isinstance(val, str) else wilson(round(part * len(val)), len(val))
        figures.append({"name": name, "accuracy": part, "between": between})
    return {
        "figures": figures,
        "views": facts.config.evaluate.views,
        "loss": float(last["val/loss"]),
        "step": last["step"],
        "epoch": last["epoch"],
        "images": None if isinstance(val, str) else len(val),
        "best": {"top1": float(best["val/top1"]), "step": best["step"]},
        "speed": float(np.median(speeds)) if speeds else None,
    }


def _of(images: int, total: int) -> str:
    return f"{images:,} of {total:,}" if 0 < images < total else f"all {total:,}"


def _index(url: str | None, why: str) -> ShardIndex | str:
    if url is None:
        return why
    found = _or_why(lambda: read_index(url))
    return found if isinstance(found, ShardIndex) else f"{found[0].upper()}{found[1:]}."


def _or_why(look_for: Callable[[], T]) -> T | str:
    """What can be had, or why not. A fault of storage goes on: a page without half of its parts is no report then."""
    try:
        return look_for()
    except InputError as error:
        return str(error)
