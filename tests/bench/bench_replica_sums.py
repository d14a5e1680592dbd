"""What one sum over replicas a step gains over a sum of each tensor in each micro-step.

python -m tests.bench.bench_replica_sums [--rounds 15] [--width 0.25] [--image-size 64] [--replicas 2]

Replicas on this machine over gloo, net 145, 4 micro-batches a step, ZeRO 0. The two ways take turns in one process,
step by step, so that a busy machine slows both; what is printed are medians over the rounds, and their ratio. "sums"
are the all-reduces alone; "step" is forward, backward, sums and update.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

import dist_alexnet.engine
from dist_alexnet.__main__ import leave
from dist_alexnet.config import Config
from dist_alexnet.deepspeed_json import BUCKET_ELEMENTS
from dist_alexnet.engine import Engine, LearnedTensor
from dist_alexnet.environment import read_world
from dist_alexnet.job import network_of
from dist_alexnet.network.build import ColumnNetwork
from dist_alexnet.network.spec import load_spec
from dist_alexnet.parallel.buckets import sum_in_buckets
from dist_alexnet.parallel.layout import Layout
from dist_alexnet.parallel.mesh import Mesh, make_mesh
from dist_alexnet.parallel.start import distributed
from tests.ranks.harness import ROOT, environment, torchrun

ACCUMULATION, IMAGES, WARM = 4, 8, 2  # micro-batches a step; images of the model group in each; rounds not timed


def measure(rounds: int, width: float, image_size: int, replicas: int) -> None:
    """On each replica: both ways in turn; rank 0 prints."""
    config = Config.model_validate(
        {
            "data": {"batch_size": ACCUMULATION * IMAGES, "image_size": image_size},
            "network": {"width": width, "num_classes": 16},
            "parallel": {"replicas": replicas, "micro_batch": IMAGES},
            "precision": "fp32",
        }
    )
    with distributed(read_world()) as device:
        mesh = make_mesh(Layout(replicas=replicas), device.type)
        once, often = engine_on(config, mesh), engine_on(config, mesh)
        shared = [one.parameter for one in often.learned if one.tensor.cut == "column"]
        for parameter in shared:
            parameter.register_hook(lambda gradient: summed(gradient, mesh))
        gradients = [torch.randn_like(parameter) for parameter in shared]

        def sums_once() -> None:
            sum_in_buckets(gradients, mesh.replica, BUCKET_ELEMENTS)

        def sums_often() -> None:
            for _ in range(ACCUMULATION):
                for gradient in gradients:
                    dist.all_reduce(gradient, group=mesh.replica)

        def step_often() -> None:
            with patch.object(dist_alexnet.engine, "sum_in_buckets", lambda *arguments: None):
                step(often, image_size)

        report("sums", rounds, sums_once, sums_often)
        report("step", rounds, lambda: step(once, image_size), step_often)


def engine_on(config: Config, mesh: Mesh) -> Engine:
    network = network_of(config, load_spec(config.network.name))
    module = ColumnNetwork(network, mesh, 0)
    return Engine(
        module,
        [LearnedTensor(one.tensor, module.parameter_of(one.tensor), 1.0, 1.0) for one in network.learned],
        config,
        mesh,
    )


def summed(gradient: Tensor, mesh: Mesh) -> Tensor:
    total = gradient.contiguous().clone()
    dist.all_reduce(total, group=mesh.replica)
    return total


def step(engine: Engine, image_size: int) -> None:
    images = IMAGES // engine.mesh.layout.replicas
    for number in range(ACCUMULATION):
        x = torch.randn(images, 3, image_size, image_size)
        position = torch.arange(images) + images * number
        loss_B, _, weight_B = engine.forward(x, position % 16, torch.ones(images), position)
        engine.backward((loss_B * weight_B).sum())
    engine.step(engine.health())


def report(what: str, rounds: int, once: Callable[[], None], often: Callable[[], None]) -> None:
    spent_s: dict[str, list[float]] = {"once": [], "often": []}
    for number in range(WARM + rounds):
        for name, work in (("once", once), ("often", often)):
            dist.barrier()
            started_s = time.perf_counter()
            work()
            if number >= WARM:
                spent_s[name].append(time.perf_counter() - started_s)
    if dist.get_rank() == 0:
        ones, others = median(spent_s["once"]), median(spent_s["often"])
        print(
            f"{what}  once a step {ones * 1e3:.1f} ms, each tensor and micro-step {others * 1e3:.1f} ms: "
            f"{others / ones:.2f} times as long"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rounds", 15), ("width", 0.25), ("image-size", 64), ("replicas", 2)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--on-ranks", action="store_true")
    chosen = parser.parse_args()
    if chosen.on_ranks:
        measure(chosen.rounds, chosen.width, chosen.image_size, chosen.replicas)
        leave(0)
    command = torchrun(chosen.replicas, "-m", "tests.bench.bench_replica_sums", *sys.argv[1:], "--on-ranks")
    subprocess.run(command, cwd=ROOT, env=environment(), check=True)


if __name__ == "__main__":
    main()
