"""From a process among others to torch.distributed and a device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from dist_alexnet.environment import World, prepare_rendezvous
from dist_alexnet.errors import LayoutError


@contextmanager
def distributed(world: World) -> Iterator[torch.device]:
    """Join the process group (NCCL for GPU tensors, gloo for CPU ones), give this rank's device, and leave again.

    A group that is already there is used as it is, and stays. Raises LayoutError where a node has more ranks than GPUs.
    """
    device = _device(world)
    if dist.is_initialized():
        yield device
        return
    prepare_rendezvous(world)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _device(world: World) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if world.local_rank >= torch.cuda.device_count():
        raise LayoutError(
            f"local rank {world.local_rank} has no GPU of its own: this node shows {torch.cuda.device_count()}; start "
            "at most one rank a GPU, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on the CPU"
        )
    device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    return device
