"""Whether it pays to begin conv3 while the other column's channels travel (parallel.overlap), on two CPU ranks.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_overlap [ROUNDS] [IMAGES]

Net 145 at full size, one column a rank over gloo; rounds of one step with and one without, in turn. Prints the median
of the ratios of wall time, and of CPU time of both ranks.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from dist_alexnet.network.build import Arithmetic, ColumnNetwork
from dist_alexnet.network.sizes import network_for
from dist_alexnet.network.spec import load_spec
from dist_alexnet.parallel.layout import Layout
from dist_alexnet.parallel.mesh import make_mesh
from tests.ranks.pool import RankPool


def rounds(count: int, images: int) -> list[dict[str, tuple[float, float]]]:
    """On each rank: (wall_s, cpu_s) of a step with and without, `count` times."""
    mesh = make_mesh(Layout(columns=2), "cpu")
    network = network_for(load_spec("alexnet-2012"), num_classes=1000)
    module = ColumnNetwork(network, mesh, 0)
    x = torch.rand(images, 3, 224, 224) * 255 - 120
    label, position, weight = torch.arange(images), torch.arange(images), torch.ones(images)
    taken = []
    for _ in range(count + 1):
        times = {}
        for name, overlap in (("overlap", True), ("plain", False)):
            module.arithmetic = Arithmetic(overlap=overlap)
            dist.barrier()
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            loss_B, _, _ = module(x, label, weight, position)
            loss_B.sum().backward()
            dist.barrier()
            times[name] = (time.perf_counter() - wall_s, time.process_time() - cpu_s)
        taken.append(times)
    return taken[1:]  # the first one warms up


def main(count: int = 7, images: int = 16) -> None:
    with tempfile.TemporaryDirectory() as folder, RankPool(2, Path(folder)) as pool:
        ranks = pool.ask(rounds, count, images, timeout_s=600)
    wall = [one["overlap"][0] / one["plain"][0] for one in ranks[0]]
    cpu = [sum(r[i]["overlap"][1] for r in ranks) / sum(r[i]["plain"][1] for r in ranks) for i in range(count)]
    print(f"a step of {images} images, overlap / plain over {count} rounds")
    print(f"wall  median {statistics.median(wall):.3f}  ({min(wall):.3f} to {max(wall):.3f})")
    print(f"cpu   median {statistics.median(cpu):.3f}  ({min(cpu):.3f} to {max(cpu):.3f})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
