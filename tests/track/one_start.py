"""One start of a run as W&B sees it, in a process of its own as in life: python -m tests.track.one_start JSON.

What is asked for: `Asked`. Losses say which generation wrote them: step + generation / 100. Prints the seconds of its
steps and of closing as JSON.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_alexnet.config import Wandb
from dist_alexnet.track import session
from dist_alexnet.track.console import NullConsole
from dist_alexnet.track.jsonl import JsonLines
from dist_alexnet.track.tracker import Tracker
from dist_alexnet.track.wandb_start import start_wandb, wandb_identity

KEY = "0123456789abcdef" * 2 + "fedcba98"  # of W&B's form, and nobody's


@dataclass
class Asked:
    folder: str
    mode: str = "offline"
    generation: int = 1
    stands_on: int | None = None
    first: int = 0
    last: int = 10
    rolled_back_at: int | None = None  # after this step ...
    rolled_back_to: int = 0  # ... and once `sent` is there, the run goes on after that one, as the next generation
    step_s: float = 0.0
    kill: bool = False  # SIGKILL once `sent` is there, instead of closing
    sent: str | None = None  # a file; None: no waiting
    exit_code: int = 0
    alert: str | None = None
    pictures: bool = False
    init_timeout_s: float = 5.0
    finish_timeout_s: float = 5.0
    settings: dict[str, Any] | None = None


def start(asked: Asked, *, home: Path, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run it and wait for its end; nothing of this process's W&B settings goes along."""
    home.mkdir(exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_") and key != "NETRC"}
    return subprocess.run(
        [sys.executable, "-m", "tests.track.one_start", json.dumps(asdict(asked))],
        env={**kept, "HOME": str(home), **environ},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=check,
        stdin=subprocess.DEVNULL,
    )


def records(file: Path) -> list[dict[str, Any]]:
    """The records of a W&B file, by W&B's own reader."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(file: Path) -> list[dict[str, Any]]:
    """The rows of a W&B file."""
    return [record["history"]["item"] for record in records(file) if record["type"] == "history"]


def offline_files(folder: Path) -> list[Path]:
    """Of a run folder, in the order of their starts."""
    return sorted((folder / "wandb").glob("offline-run-*/*.wandb"))


def loss(step: int, generation: int) -> float:
    return step + generation / 100


def _main(asked: Asked) -> None:
    session.INIT_TIMEOUT_S, session.FINISH_TIMEOUT_S = asked.init_timeout_s, asked.finish_timeout_s
    folder, generation = Path(asked.folder), asked.generation
    _begins(folder, generation, asked.first, asked.stands_on)
    tracker = Tracker(JsonLines(folder / "metrics.jsonl", generation), _wandb(asked, folder), NullConsole())
    steps_s = []
    step = asked.first
    while step < asked.last:
        step, began_s = step + 1, time.perf_counter()
        time.sleep(asked.step_s)
        tracker.metrics(step, step * 64, step / 10, {"train/loss": loss(step, generation)})
        if step % 10 == 0:
            tracker.metrics(step, step * 64, step / 10, {"val/top1": float("nan")})
            if asked.pictures:
                tracker.pictures(step, _picture(folder, step))
        if step == asked.rolled_back_at and generation == asked.generation:
            _wait_for(asked.sent)
            generation, step = generation + 1, asked.rolled_back_to
            _begins(folder, generation, step, asked.generation)
            tracker.go_on(JsonLines(folder / "metrics.jsonl", generation), generation, step)
        steps_s.append(time.perf_counter() - began_s)
    if asked.kill:
        _wait_for(asked.sent)
        os.kill(os.getpid(), signal.SIGKILL)
    if asked.alert is not None:
        tracker.alert("the run", asked.alert)
    began_s = time.perf_counter()
    tracker.close(asked.exit_code)
    close_s = time.perf_counter() - began_s
    times = {"median_s": statistics.median(steps_s), "longest_s": max(steps_s), "loop_s": sum(steps_s)}
    times |= {"close_s": close_s, "closed_at_s": time.time()}
    print(json.dumps({**times, "imported": "wandb" in sys.modules}))


def _wait_for(path: str | None) -> None:
    while path is not None and not Path(path).exists():
        time.sleep(0.02)


def _begins(folder: Path, generation: int, step: int, stands_on: int | None) -> None:
    lines = JsonLines(folder / "attempts.jsonl", generation)
    lines.append({"event": "start", "step": step, "from": stands_on})
    lines.close()


def _wandb(asked: Asked, folder: Path) -> Any:
    settings = Wandb.model_validate({"mode": asked.mode, "project": "trial", **(asked.settings or {})})
    return start_wandb(
        settings,
        run_folder=folder,
        run_name="digits",
        run_id=wandb_identity(settings, folder, None),
        config=lambda: {"data": {"batch_size": 64, "train": "https://me:secret@host/x.tar?X-Amz-Signature=abc"}},
        generation=asked.generation,
        step=asked.first,
        host="here",
    )


def _picture(folder: Path, step: int) -> dict[str, Path]:
    from PIL import Image

    path = folder / "pictures" / f"step-{step:08d}-filters.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (2, 2), (step, 0, 0)).save(path)
    return {"filters": path}


if __name__ == "__main__":
    _main(Asked(**json.loads(sys.argv[1])))
