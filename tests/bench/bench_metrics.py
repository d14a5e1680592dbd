"""What a line of metrics costs, norms and all, in parts of the steps between two lines.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node=1 -m tests.bench.bench_metrics configs/quickstart.yaml KEY=VALUE...

Every second step has a line (log.every_steps is 2 here), so that steps with and without one alternate on the same
machine. The difference of neighbours is the price of a line, twenty times as large in this as it is with every_steps at
20: its median is told, and where the middle half of the differences lies. What every step pays is told apart: it is
some readings of a clock. On CPUs seconds are of the processor and not of the wall: the machine may be shared.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast
from unittest.mock import patch

import torch
import torch.distributed as dist

from dist_alexnet.config import load_config
from dist_alexnet.data.batch import Batch
from dist_alexnet.environment import read_world
from dist_alexnet.parallel.agree import on_first_rank
from dist_alexnet.parallel.start import distributed
from dist_alexnet.train import _Run

STEPS, WARM, EVERY = 44, 4, 20


def main(path: str, *overrides: str) -> None:
    began_s, spent_s = list[float](), list[float]()
    step, after = _Run._step, _Run._after
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time

    def stepped(run: _Run, number: int, batches: Iterator[Batch]) -> None:
        dist.barrier()
        began_s.append(clock())
        step(run, number, batches)

    def done(run: _Run, number: int) -> None:
        after(run, number)
        spent_s.append(clock() - began_s[-1])

    alone = ("run.epochs=null", f"run.steps={STEPS}", "data.val=null", "evaluate.every_epochs=null")
    quiet = ("checkpoint.every_epochs=null", "log.wandb.mode=disabled", "log.pictures=false", "schedule.name=constant")
    with tempfile.TemporaryDirectory() as folder, distributed(read_world()) as device:
        shared = on_first_rank(lambda: folder)
        config = load_config(path, [*alone, *quiet, "log.every_steps=2", f"run.dir={shared}", *overrides])
        with patch.object(_Run, "_step", stepped), patch.object(_Run, "_after", done), patch.object(_Run, "_save"):
            run = _Run(config, device, "never")
            run.story()
        if dist.get_rank() == 0:
            _tell(spent_s[WARM:], _each_step_s(run))
        dist.barrier()


def _each_step_s(run: _Run) -> float:
    """What a step of one micro-batch pays that has no line."""
    times, nothing = 10_000, cast(Batch, SimpleNamespace(fetch_s=0.0, decode_s=0.0))
    batches = iter([nothing] * times)
    began_s = time.perf_counter()
    for _ in range(times):
        with run.measures.step():
            run.measures.loaded(batches)
            with run.measures.copying(), run.measures.norms.looking(due=False):
                pass
    return (time.perf_counter() - began_s) / times


def _tell(spent_s: list[float], each_s: float) -> None:
    pairs = list(zip(spent_s[::2], spent_s[1::2], strict=True))
    without_s, lines_s = statistics.median(pair[0] for pair in pairs), sorted(pair[1] - pair[0] for pair in pairs)
    first, median, last = (1000 * quarter_s for quarter_s in statistics.quantiles(lines_s, n=4))
    print(f"a step without a line: median {1000 * without_s:.1f} ms; its clocks cost {1e6 * each_s:.1f} us")
    print(f"a line: median {median:.1f} ms, middle half {first:.1f} to {last:.1f} ms")
    print(f"a line each {EVERY} steps: {median / EVERY / without_s / 10:.2f} % of a step")


if __name__ == "__main__":
    main(*sys.argv[1:])
