"""What a rank needs of memory, by arithmetic, and what its host or its GPU has.

Counted: weights, gradients and optimizer state by ZeRO stage, DeepSpeed's buckets, the activations that backward
needs, and in host memory the copy that a save writes from. Not counted exactly: work space of libraries (a lump sum).
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from dist_alexnet.deepspeed_json import BUCKET_ELEMENTS
from dist_alexnet.doctor.finding import Finding
from dist_alexnet.doctor.site import Site, in_bytes
from dist_alexnet.job import Job
from dist_alexnet.network.cost import FP32_BYTES, layer_costs, sent_on

PROCESS_BYTES = 700 * 10**6  # torch and DeepSpeed, imported
WORKER_BYTES = 250 * 10**6  # a loader process
GPU_BYTES = 1500 * 10**6  # context and work space of CUDA, cuDNN, NCCL
CGROUP_FILES = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
TIGHT = 0.8  # part of what is there


@dataclass(frozen=True)
class Needed:
    """Bytes of one rank. model: weights, gradients, state, buckets. activations: of one forward. copy: of a save."""

    model: int
    activations: int
    copy: int


def states_of(job: Job) -> int:
    """Values of optimizer state a weight."""
    return 2 if job.config.optimizer.name == "adamw" else 1


def saved_bytes(job: Job) -> int:
    """Of a checkpoint, in all its files."""
    return job.network.parameters * FP32_BYTES * (1 + states_of(job))


def needed_by(job: Job) -> Needed:
    """What the rank with the most needs."""
    held, stage, data = sent_on(job.network, job.layout).held, job.config.parallel.zero_stage, job.layout.data
    weights = held / data if stage == 3 else held + (held / data if stage else 0)  # ZeRO 1, 2: and their own part again
    gradients = held / data if stage >= 2 else held
    state = states_of(job) * held / (data if stage else 1)
    images = -(-job.batches.micro_batch // job.layout.replicas)
    outputs = sum(cost.outputs for cost in layer_costs(job.network)) // job.layout.columns
    pixels = 3 * job.network.image_size**2
    return Needed(
        model=int(FP32_BYTES * (weights + gradients + state + 2 * min(BUCKET_ELEMENTS, held))),
        activations=images * FP32_BYTES * (2 * outputs + 2 * pixels),
        copy=int(FP32_BYTES * (1 + states_of(job)) * held / data),
    )


def memory(site: Site) -> Finding:
    """Every rank of this host, beside each other."""
    needed, ranks, workers = needed_by(site.job), site.world.local_world_size, site.config.data.workers
    on_host = PROCESS_BYTES + needed.copy + workers * WORKER_BYTES
    on_rank = needed.model + needed.activations
    if not torch.cuda.is_available():
        return _compared("of this host", ranks * (on_host + on_rank), host_bytes(), ranks)
    device = torch.cuda.mem_get_info(0)[0]
    host = _compared("of this host", ranks * on_host, host_bytes(), ranks)
    gpu = _compared("free on a GPU", GPU_BYTES + on_rank, device, 1)
    return host if host.level == "FAIL" or gpu.level == "ok" != host.level else gpu


def host_bytes() -> int:
    """Memory that processes can still have on this host, or in this container if that is less."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    available = next(int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:")
    for limit, used in CGROUP_FILES:
        try:
            left = int(limit.read_text()) - int(used.read_text())
        except (OSError, ValueError):  # another version of cgroups, or "max"
            continue
        available = min(available, left)
    return available


def _compared(what: str, needed: int, there: int, ranks: int) -> Finding:
    by = f" by its {ranks} ranks" if ranks > 1 else ""
    told = f"about {in_bytes(needed)} of the {in_bytes(there)} {what} needed{by}"
    do = "lower parallel.micro_batch, raise parallel.zero_stage, or use more hosts"
    if needed > there:
        return Finding("FAIL", told, do)
    return Finding("warning", told, do) if needed > TIGHT * there else Finding("ok", told)
