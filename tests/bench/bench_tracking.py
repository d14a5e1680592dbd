"""What tracking costs a step: the training loop's calls of the tracker, and W&B's thread beside it.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_tracking

A loop of steps of fixed work, about STEP_S each, with a line of KEYS numbers every 20 steps, and every step. All is CPU
time, so that other work of the machine does not count: `calls` is what the loop's thread spends inside of
Tracker.metrics, `beside` what all other threads of the process spend, both in parts of the steps' own.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from dist_alexnet.config import Wandb
from dist_alexnet.track.console import NullConsole
from dist_alexnet.track.jsonl import JsonLines
from dist_alexnet.track.tracker import Tracker
from dist_alexnet.track.wandb_run import WandbRun
from dist_alexnet.track.wandb_start import start_wandb

STEPS, ROUNDS, STEP_S, KEYS = 100, 3, 0.05, 80


def main(every: int) -> None:
    values = {f"norm/weight/layer{number}.weight": number / 7 for number in range(KEYS)}
    products = _products()
    for mode in ("disabled", "offline"):
        parts = []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as folder:
                parts.append(_round(mode, Path(folder), values, every, products))
        calls, beside = (100 * statistics.median(part) for part in zip(*parts, strict=True))
        print(f"a line every {every} steps, W&B {mode}: calls {calls:.3f} %, beside {beside:.2f} %", flush=True)


def _round(mode: str, folder: Path, values: dict[str, float], every: int, products: int) -> tuple[float, float]:
    """CPU time in the tracker's calls, and of other threads, over the steps' own; W&B has started before."""
    tracker = Tracker(JsonLines(folder / "metrics.jsonl", 1), _wandb(mode, folder), NullConsole())
    if mode == "offline":
        while not list((folder / "wandb").glob("offline-run-*/*.wandb")):
            time.sleep(0.05)
        time.sleep(1.0)
    x_NN, calls_s = torch.ones(256, 256), 0.0
    began_s, process_began_s = time.thread_time(), time.process_time()
    for step in range(1, STEPS + 1):
        for _ in range(products):
            x_NN @ x_NN
        if step % every == 0:
            called_s = time.thread_time()
            tracker.metrics(step, step * 128, step / 10_000, values)
            calls_s += time.thread_time() - called_s
    loop_s, process_s = time.thread_time() - began_s, time.process_time() - process_began_s
    tracker.close()
    return calls_s / (loop_s - calls_s), (process_s - loop_s) / (loop_s - calls_s)


def _products() -> int:
    """How many products take STEP_S."""
    x_NN, began_s = torch.ones(256, 256), time.thread_time()
    for _ in range(500):
        x_NN @ x_NN
    return max(1, round(500 * STEP_S / (time.thread_time() - began_s)))


def _wandb(mode: str, folder: Path) -> WandbRun | None:
    return start_wandb(
        Wandb.model_validate({"mode": mode}),
        run_folder=folder,
        run_name="bench",
        run_id="bench",
        config=dict,
        generation=1,
        step=0,
        host="here",
    )


if __name__ == "__main__":
    for every in map(int, sys.argv[1:] or ("20", "1")):
        main(every)
