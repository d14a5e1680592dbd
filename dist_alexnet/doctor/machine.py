"""What each host has: GPUs, open files, shared memory, disks."""

import os
import resource
import shutil
import subprocess
from pathlib import Path

import torch

from dist_alexnet.doctor.finding import Finding
from dist_alexnet.doctor.memory import saved_bytes
from dist_alexnet.doctor.site import Site, in_bytes, standing_above
from dist_alexnet.environment import gpus_hidden
from shards import storage
from shards.reader import MAX_OPEN_FILES

SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 2 + 1  # batches of a worker: those that torch's loader asks for ahead, and the one in use
NCCL_BYTES = 32 * 2**20  # a rank
FILES_BESIDE = 64  # libraries, logs, pipes
FEW_INODES = 10_000
LOGS_BYTES = 10**8


def gpus(site: Site) -> Finding:
    """One GPU a rank on every host, or none on all."""
    seen, ranks = torch.cuda.device_count() if torch.cuda.is_available() else 0, site.world.local_world_size
    driver = _driver()
    alike = {"what ranks train on": "GPUs" if seen else "the CPU"}
    if not seen and driver is not None and not gpus_hidden():
        built = (
            f"torch {torch.__version__} is built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPUs'}"
        )
        return Finding(
            "FAIL",
            f"driver {driver} is there, and torch sees no GPU: {built}",
            "install a torch that fits the driver, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on the CPU",
            alike,
        )
    if not seen:
        return Finding("ok", "none: ranks train on the CPU, over gloo", alike=alike)
    nccl = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
    told = f"{seen} x {torch.cuda.get_device_name(0)}, driver {driver}, CUDA {torch.version.cuda}, NCCL {nccl}"
    own_only = site.world.launcher == "slurm" and seen == 1  # srun may show each task its own one
    if seen < ranks and not own_only:
        return Finding(
            "FAIL", f"{told}: fewer than the {ranks} ranks of this host", "start at most one rank a GPU", alike
        )
    return Finding("ok", told, alike=alike | {"NCCL": nccl})


def open_files(site: Site) -> Finding:
    """A process may have its shards and its connections open at once."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    shards = len(site.job.train.shards) + (len(site.job.val.shards) if site.job.val is not None else 0)
    needed = FILES_BESIDE + min(shards, 2 * MAX_OPEN_FILES) + 4 * site.ranks
    told = f"{limit} for a process (about {needed} needed)"
    if limit < needed:
        return Finding(
            "FAIL", told, f"raise it before the start: ulimit -n {max(4096, needed)} (the most here: {most})"
        )
    return Finding("ok", told)


def shared_memory(site: Site) -> Finding:
    """Loader workers hand batches over there, and NCCL's ranks of one host exchange there."""
    config, job, ranks = site.config, site.job, site.world.local_world_size
    images = -(-job.batches.micro_batch // config.parallel.replicas)
    batch_bytes = images * 3 * config.data.image_size**2
    needed = ranks * config.data.workers * PREFETCHED * batch_bytes
    if torch.cuda.is_available():
        needed += ranks * NCCL_BYTES
    if not SHARED_MEMORY.is_dir():
        return Finding(
            "FAIL" if needed else "ok",
            f"{SHARED_MEMORY} is not there, {in_bytes(needed)} needed",
            "mount a tmpfs there",
        )
    free = shutil.disk_usage(SHARED_MEMORY).free
    told = f"{in_bytes(free)} free in {SHARED_MEMORY}, {in_bytes(needed)} needed by {ranks} ranks on this host"
    if free < needed:
        return Finding(
            "FAIL",
            told,
            "clear it, enlarge it (docker run --shm-size, a Memory volume in Kubernetes, mount -o remount,size=), or "
            "set data.workers=0",
        )
    return Finding("ok", told)


def disks(site: Site) -> Finding:
    """Room for checkpoints in the run folder, and for shards in the cache."""
    config, job = site.config, site.job
    saved = config.run_folder if config.checkpoint.url is None else storage.local_path(config.checkpoint.url)
    findings = [_room(config.run_folder, LOGS_BYTES, "logs")] if saved != config.run_folder else []
    if saved is not None:
        many = config.checkpoint.keep + 1
        findings.append(_room(saved, many * saved_bytes(job), f"{many} checkpoints"))
    if config.data.cache.dir is not None and storage.local_path(job.train.folder) is None:
        shards = [*job.train.shards, *(job.val.shards if job.val is not None else ())]
        largest = max(row.bytes for row in shards)
        limit = config.data.cache.max_bytes or 2**63
        least = 2 * largest * site.world.local_world_size
        findings.append(_room(Path(config.data.cache.dir), min(limit, least), "the shards that are read at once"))
        free = shutil.disk_usage(standing_above(Path(config.data.cache.dir))).free
        whole = sum(row.bytes for row in shards)
        if min(free, limit) < whole:
            findings.append(
                Finding(
                    "ok",
                    f"the cache holds {min(free, limit) / whole:.0%} of the {in_bytes(whole)} of shards: on few hosts, "
                    "the rest is fetched anew in each epoch",
                )
            )
    worst = next((one for level in ("FAIL", "warning") for one in findings if one.level == level), None)
    return worst or Finding("ok", "; ".join(one.found for one in findings))


def _room(folder: Path, wanted: int, what: str) -> Finding:
    there = standing_above(folder)
    free, stat = shutil.disk_usage(there).free, os.statvfs(there)
    inodes = f", {stat.f_favail:,} files" if stat.f_files else ""  # some file systems do not count them
    told = f"{in_bytes(free)}{inodes} free for {folder} ({in_bytes(wanted)} wanted for {what})"
    if free < wanted:
        return Finding("FAIL", told, "make room, or choose another disk")
    if stat.f_files and stat.f_favail < FEW_INODES:
        return Finding("FAIL" if stat.f_favail == 0 else "warning", told, "take away small files: inodes run out")
    return Finding("ok", told)


def _driver() -> str | None:
    """The NVIDIA driver's version, None where there is none, or no GPU."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None
