"""How long training waits for a save in the background, in parts of a save that it waits for.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_save [ROUNDS]

The state of net 145 at full size (61 M weights and their momentum, 488 MB) on two ranks, one column each; saves with
and without checkpoint.async in turn. Between saves nothing is computed: what the thread takes from the steps is not
counted.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from dist_alexnet.checkpoint.saver import Saver
from dist_alexnet.config import Checkpoint
from dist_alexnet.engine import Fragment, Kind
from dist_alexnet.network.sizes import network_for
from dist_alexnet.network.spec import load_spec
from dist_alexnet.parallel.layout import Layout, Place, owned_rows
from tests.ranks.pool import RankPool


def rounds(count: int, folder: str) -> list[tuple[float, float]]:
    """On each rank: seconds that `save` took (in the background, waited for), `count` times."""
    place = Place(Layout(columns=2), dist.get_rank())
    fragments = []
    kinds: tuple[Kind, ...] = ("weight", "momentum")
    for tensor in network_for(load_spec("alexnet-2012"), num_classes=1000).tensors:
        rows = owned_rows(tensor, place)
        for kind in kinds:
            values = torch.randn(len(rows) * tensor.row_elements)
            fragments.append(Fragment(tensor.name, kind, values, rows.start * tensor.row_elements, tensor.elements))
    savers = [Saver(Path(folder) / str(later), Checkpoint(background=later, keep=1)) for later in (True, False)]
    taken = []
    for number in range(count + 1):
        spent = []
        for saver in savers:
            dist.barrier()
            began_s = time.perf_counter()
            saver.save(fragments, step=number + 1, generation=1, layout={}, versions={}, state={})
            spent.append(time.perf_counter() - began_s)
            saver.wait()
        taken.append((spent[0], spent[1]))
    return taken[1:]  # the first one makes the copies' memory


def main(count: int = 5) -> None:
    with tempfile.TemporaryDirectory() as folder, RankPool(2, Path(folder)) as pool:
        ranks = pool.ask(rounds, count, folder, timeout_s=600)
    ratios = [later / waited for rank in ranks for later, waited in rank]
    waited_s = statistics.median(waited for rank in ranks for _, waited in rank)
    print(f"a save that is waited for: {waited_s:.2f} s (median)")
    print(f"background / waited for, of {count} rounds and 2 ranks: median {statistics.median(ratios):.3f}")
    print(f"({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
