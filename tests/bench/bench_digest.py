"""What a digest of weights and momentum of the network at full size costs a rank.

python -m tests.bench.bench_digest [ranks]      seconds of one core's (or the GPU's) time, of `ranks` that share it
"""

import sys
import time

import torch

from dist_alexnet.digest import add_up
from dist_alexnet.engine import Fragment, Kind
from dist_alexnet.network.sizes import network_for
from dist_alexnet.network.spec import load_spec

KINDS: tuple[Kind, ...] = ("weight", "momentum")


def main(ranks: int) -> None:
    """Print the median of 5 rounds."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = network_for(load_spec("alexnet-2012"), num_classes=1000).tensors
    parts = [
        Fragment(one.name, kind, torch.randn(max(1, one.elements // ranks), device=device), 0, one.elements)
        for one in tensors
        for kind in KINDS
    ]
    names = [one.name for one in tensors]
    spent_s = sorted(_once_s(parts, names, device) for _ in range(5))
    elements = sum(len(part.values) for part in parts)
    print(
        f"{elements / 1e6:.1f} M values on {device}: median {spent_s[2]:.3f} s ({spent_s[0]:.3f} to {spent_s[-1]:.3f})"
    )


def _once_s(parts: list[Fragment], names: list[str], device: str) -> float:
    clock = time.monotonic if device == "cuda" else time.thread_time  # of this thread: the machine may be shared
    began_s = clock()
    add_up(parts, names).cpu()
    return clock() - began_s


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
