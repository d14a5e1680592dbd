"""A W&B workspace for runs of this project: which panels there are, and how they become one.

The keys of a panel are those of track/keys.py; docs/watching.md says how to read each panel.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_alexnet.config import Wandb, load_config
from dist_alexnet.environment import has_wandb_key, quiet_wandb
from dist_alexnet.errors import RunFolderError
from dist_alexnet.track.session import brief
from shards.errors import InputError


@dataclass(frozen=True)
class Panel:
    """Curves over the steps. A key that ends in `/*` is a family of keys, all in one panel."""

    title: str
    keys: tuple[str, ...]
    log: bool = False  # logarithmic, for what falls or grows by factors


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Learning": (
        Panel("Loss", ("train/loss", "val/loss")),
        Panel("Top-1", ("train/top1", "val/top1")),
        Panel("Top-5", ("train/top5", "val/top5")),
        Panel("Learning rate", ("optim/lr",), log=True),
        Panel("Learning rates of their own", ("optim/lr/*",), log=True),
        Panel("Loss scale", ("optim/loss_scale",), log=True),
    ),
    "Norms by layer": (
        Panel("Norm of the gradient and of the weights", ("norm/gradient", "norm/weight"), log=True),
        Panel("Update over weight", ("optim/update_ratio/*",), log=True),
        Panel("Norm of each gradient", ("norm/gradient/*",), log=True),
        Panel("Norm of each weight", ("norm/weight/*",), log=True),
    ),
    "Speed": (
        Panel("Images a second", ("speed/images_per_s",)),
        Panel("Images a second and device", ("speed/images_per_s_per_device",)),
        Panel("Model FLOPs utilisation", ("speed/mfu",)),
        Panel("Step time", ("time/step_p50_s", "time/step_p95_s", "time/step_max_s")),
        Panel("Phases of a step", ("time/load_s", "time/forward_s", "time/backward_s", "time/reduce_s", "time/step_s")),
        Panel("The slowest rank's phases", ("time/load_max_s", "time/forward_max_s")),
        Panel("Slowest rank", ("time/slowest_rank",)),
    ),
    "Data": (
        Panel("Waiting for data", ("data/wait_s",)),
        Panel("Fetch, decode, transfer", ("data/fetch_s", "data/decode_s", "data/transfer_s")),
        Panel("Bad samples", ("data/bad_samples", "val/bad_images")),
        Panel("Dropped steps", ("train/dropped_steps",)),
    ),
    "Machine": (
        Panel("Memory", ("memory/device_peak_bytes", "memory/host_rss_bytes")),
        Panel("Bytes on the wire", ("wire/bytes_per_step",)),
    ),
}
PICTURES = ("filters", "batch", "predictions")  # as pictures/<name>


def dashboard_spec(folder: Path, project: str | None = None, entity: str | None = None) -> dict[str, Any]:
    """The workspace for a run folder as plain values, as it would be sent; nobody is asked, no key is needed.

    Raises as save_dashboard.
    """
    settings = _settings(folder)
    made = workspace(_library(), entity or settings.entity or "ENTITY", project or settings.project)
    spec: dict[str, Any] = made._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return spec


def save_dashboard(folder: Path, project: str | None = None, entity: str | None = None) -> str:
    """Make the workspace in the project of the run; returns its URL.

    Raises RunFolderError where there is no run, InputError where wandb-workspaces or the key is missing, or where W&B
    refuses.
    """
    settings, library = _settings(folder), _library()
    if not has_wandb_key():
        raise InputError("there is no API key of W&B: set WANDB_API_KEY, run `wandb login`, or give --json FILE")
    try:
        entity = entity or settings.entity or library.default_entity()
        made = workspace(library, entity, project or settings.project)
        made.save()
        return str(made.url)
    except Exception as error:  # W&B's errors have no common base
        raise InputError(f"W&B did not take the workspace ({brief(error)})") from error


def workspace(library: "_Library", entity: str, project: str) -> Any:
    """The workspace as an object of wandb-workspaces; nothing is sent."""
    sections = [
        library.workspaces.Section(name=name, panels=[_plot(library, panel) for panel in panels], is_open=number < 3)
        for number, (name, panels) in enumerate(SECTIONS.items())
    ]
    shown = [library.panels.MediaBrowser(title=name, media_keys=[f"pictures/{name}"]) for name in PICTURES]
    sections.insert(2, library.workspaces.Section(name="Pictures", panels=shown, is_open=True))
    return library.workspaces.Workspace(entity=entity, project=project, name="dist_alexnet", sections=sections)


@dataclass(frozen=True)
class _Library:
    """wandb, and the two modules of wandb-workspaces."""

    wandb: Any
    workspaces: Any
    panels: Any

    def default_entity(self) -> str:
        entity = self.wandb.Api().default_entity
        if not entity:
            raise ValueError("it names no default entity: give --entity")
        return str(entity)


def _settings(folder: Path) -> Wandb:
    if not (folder / "config.yaml").is_file():
        raise RunFolderError(f"{folder} has no config.yaml: give the folder of a run, <run.dir>/<run.name>")
    return load_config(folder / "config.yaml").log.wandb


def _library() -> _Library:
    quiet_wandb()
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise InputError(
            "the package wandb-workspaces is not installed: pip install 'dist-alexnet[dashboard]'"
        ) from error
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return _Library(wandb, workspaces, panels)


def _plot(library: _Library, panel: Panel) -> Any:
    families = [key[:-1] for key in panel.keys if key.endswith("/*")]
    if families:
        chosen: dict[str, Any] = {"metric_regex": "^(" + "|".join(re.escape(family) for family in families) + ").*"}
    else:
        chosen = {"y": list(panel.keys)}
    return library.panels.LinePlot(title=panel.title, x="Step", log_y=panel.log or None, **chosen)
