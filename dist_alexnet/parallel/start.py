"""From a process among others to torch.distributed and a device."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist

from dist_alexnet.environment import World, prepare_rendezvous
from dist_alexnet.errors import LayoutError
from dist_alexnet.parallel.agree import on_every_rank, together
from dist_alexnet.parallel.mesh import PATIENCE


@contextmanager
def distributed(world: World) -> Iterator[torch.device]:
    """Join the process group (NCCL for GPU tensors, gloo for CPU ones), give this rank's device, and leave again.

    A group that is already there is used as it is, and stays. Raises LayoutError, on every rank alike, where a rank has
    no GPU of its own or some ranks have none at all.
    """
    if dist.is_initialized():
        yield _agreed_device(world)
        return
    # DeepSpeed takes the device from LOCAL_RANK, too.
    prepare_rendezvous(replace(world, local_rank=_device_index(world)))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    device = None
    try:
        device = _agreed_device(world)
        yield device
    except BaseException:
        # To leave NCCL is a collective: a rank that fails alone would wait for the others, which wait for it in another
        # one, and its error would never be said. It ends as it is.
        if device is None or device.type == "cpu":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _agreed_device(world: World) -> torch.device:
    device = together(lambda: _device(world))
    kinds = on_every_rank(lambda: (device.type, platform.node()))
    for kind, host in kinds:
        if kind != kinds[0][0]:
            raise LayoutError(
                f"host {kinds[0][1]} trains on {kinds[0][0]} and host {host} on {kind}: take the broken one out, "
                "or hide the GPUs of all (CUDA_VISIBLE_DEVICES=)"
            )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _device_index(world: World) -> int:
    """The GPU of this rank on its node; srun may show each task its own one only."""
    alone = world.launcher == "slurm" and torch.cuda.is_available() and torch.cuda.device_count() == 1
    return 0 if alone else world.local_rank


def _device(world: World) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = _device_index(world)
    if index >= torch.cuda.device_count():
        raise LayoutError(
            f"local rank {index} on host {platform.node()} has no GPU of its own, {torch.cuda.device_count()} can be "
            "seen: start at most one rank a GPU, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on the CPU"
        )
    return torch.device("cuda", index)
