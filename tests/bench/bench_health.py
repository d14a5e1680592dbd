"""What it costs to look at the loss and gradient of each step before its update, in parts of a step.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node=2 -m tests.bench.bench_health configs/quickstart.yaml KEY=VALUE...

The time of a look begins when all ranks have come to it, so that waiting for another rank is no part of it. Its median,
and its fastest tenth, where the machine did nothing else; likewise of whole steps.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from unittest.mock import patch

import torch.distributed as dist

from dist_alexnet.config import load_config
from dist_alexnet.data.batch import Batch
from dist_alexnet.engine import Engine, Health
from dist_alexnet.environment import read_world
from dist_alexnet.parallel.agree import on_first_rank
from dist_alexnet.parallel.start import distributed
from dist_alexnet.train import _Run

STEPS, WARM = 200, 10


def main(path: str, *overrides: str) -> None:
    looks, steps = list[float](), list[float]()
    health, step = Engine.health, _Run._step

    def looked(engine: Engine) -> Health:
        dist.barrier()
        began_s = time.perf_counter()
        found = health(engine)
        looks.append(time.perf_counter() - began_s)
        return found

    def stepped(run: _Run, number: int, batches: Iterator[Batch]) -> None:
        began_s = time.perf_counter()
        step(run, number, batches)
        steps.append(time.perf_counter() - began_s)

    alone = ("run.epochs=null", f"run.steps={STEPS}", "data.val=null", "evaluate.every_epochs=null")
    quiet = ("checkpoint.every_epochs=null", "log.wandb.mode=disabled", "schedule.name=constant")
    with tempfile.TemporaryDirectory() as folder, distributed(read_world()) as device:
        shared = on_first_rank(lambda: folder)
        config = load_config(path, [*alone, *quiet, f"run.dir={shared}", *overrides])
        with patch.object(Engine, "health", looked), patch.object(_Run, "_step", stepped):
            _Run(config, device, "never").story()
        if dist.get_rank() == 0:
            for name, spent_s in (("look", looks[WARM:]), ("step", steps[WARM:])):
                fastest_s = statistics.quantiles(spent_s, n=10)[0]
                print(f"{name}: median {1000 * statistics.median(spent_s):.2f} ms, tenth {1000 * fastest_s:.2f} ms")
        dist.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
