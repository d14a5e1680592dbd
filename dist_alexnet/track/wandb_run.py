"""Weights & Biases: the only importer of wandb.

W&B shows a run, it never holds it: metrics.jsonl is the truth. So nothing here stops a training run. What fails is
said once, in one line on stderr, and the run goes on without it.
"""

import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from dist_alexnet.environment import has_wandb_key, quiet_wandb, wandb_mode

INIT_TIMEOUT_S = 10.0  # what a service that is not there costs at the start, once
FINISH_TIMEOUT_S = 60.0  # what is not sent by then stays on disk for `wandb sync`

Mode = Literal["online", "offline"]


class WandbSettings(Protocol):
    """What config's log.wandb section gives."""

    @property
    def mode(self) -> str: ...  # auto | online | offline | disabled
    @property
    def project(self) -> str: ...
    @property
    def entity(self) -> str | None: ...


class WandbRun:
    """A started run, or none: then every call does nothing. `run` is what wandb.init returned."""

    def __init__(self, run: Any = None) -> None:
        self._run = run

    def log(self, step: int, samples: int, values: Mapping[str, float]) -> None:
        """Show values at our own step; `samples` is the count seen so far."""
        if self._run is not None:
            self._try("log", lambda run: run.log({"step": step, "samples": samples, **values}))

    def finish(self, exit_code: int = 0) -> None:
        """End the run (exit code 0 is success), waiting at most FINISH_TIMEOUT_S for what is still to be sent."""
        if self._run is not None:
            self._try("finish", lambda run: run.finish(exit_code=exit_code))
            self._run = None

    def _try(self, what: str, call: Callable[[Any], object]) -> None:
        try:
            call(self._run)
        except Exception as error:  # whatever W&B raises, training goes on
            self._run = None
            _say(f"{what} failed ({_brief(error)}); the run goes on without it, metrics.jsonl is complete")


def start_wandb(
    settings: WandbSettings,
    *,
    run_folder: Path,
    run_name: str,
    config: Mapping[str, Any],
    generation: int,
    resumed_step: int,
) -> WandbRun:
    """Start, or take up again, the W&B run of this run folder; call it on rank 0 only.

    Writes below <run_folder>/wandb/. Online where that is asked for or, with mode "auto", where a key is found;
    otherwise offline. Never asks on the terminal and raises nothing: at worst the run that comes back does nothing.
    """
    mode = wandb_mode(settings.mode)
    if mode == "disabled":
        return WandbRun()
    if mode == "online" and not has_wandb_key():
        _say("no API key (WANDB_API_KEY or ~/.netrc), so this run is logged offline")
        mode = "offline"
    modes: list[Mode] = ["online", "offline"] if mode == "online" else ["offline"]
    for attempt in modes:
        try:
            run_id = run_identity(run_folder)
            run = _init(attempt, settings, run_folder, run_id, run_name, config)
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            run.config.update({"generation": generation, "resumed_step": resumed_step}, allow_val_change=True)
            return WandbRun(run)
        except Exception as error:  # no service, no disk, no wandb: training does not depend on any of them
            then = "this run is logged offline" if attempt != modes[-1] else "this run is not shown there"
            _say(f"{attempt} start failed ({_brief(error)}); {then}")
            _forget_failed_start()
    return WandbRun()


def run_identity(run_folder: Path) -> str:
    """The W&B id of a run folder: one over all its starts, drawn by the first and kept in wandb/run-id.txt."""
    path = run_folder / "wandb" / "run-id.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size == 0:  # killed between creating and writing
        path.unlink()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return path.read_text().strip()
    run_id = secrets.token_hex(4)
    with os.fdopen(descriptor, "w") as file:
        file.write(run_id + "\n")
    return run_id


def _init(
    mode: Mode, settings: WandbSettings, run_folder: Path, run_id: str, run_name: str, config: Mapping[str, Any]
) -> Any:
    quiet_wandb()
    import wandb  # here, so that a disabled run does not pay for it

    wishes = {
        "silent": True,
        "console": "off",
        "disable_git": True,  # a remote's URL may hold a token
        "disable_code": True,
        "x_save_requirements": False,
        "init_timeout": INIT_TIMEOUT_S,
        "login_timeout": INIT_TIMEOUT_S,
        "finish_timeout": FINISH_TIMEOUT_S,
    }
    known = wandb.Settings(**{key: value for key, value in wishes.items() if key in wandb.Settings.model_fields})
    wandb.setup(settings=known)  # the login speaks before init has its settings
    return wandb.init(
        mode=mode,
        id=run_id,
        resume="allow" if mode == "online" else None,  # offline every start is its own file under the same id
        project=settings.project,
        entity=settings.entity,
        name=run_name,
        dir=str(run_folder),
        config=dict(config),
        allow_val_change=True,
        settings=known,
    )


def _forget_failed_start() -> None:
    """End W&B's service process, which would hold the run id and call the next start a second user of it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None:
        with contextlib.suppress(Exception):
            wandb.teardown(exit_code=1)


def _say(text: str) -> None:
    print(f"W&B: {text}", file=sys.stderr, flush=True)


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]
