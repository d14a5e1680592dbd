"""How the ranks reach each other and the world outside: clocks, collectives, W&B."""

import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from dist_alexnet.doctor.finding import Finding
from dist_alexnet.doctor.site import Site, in_bytes
from dist_alexnet.environment import has_wandb_key, wandb_mode, wandb_url
from dist_alexnet.parallel.start import distributed

CLOCK_ROUNDS = 3
SKEW_S, REFUSED_S = 1.0, 240.0  # from the latter on, services refuse signed requests
GROUP_S = 40.0
REDUCED_BYTES = 16 * 2**20
REDUCED_GPU_BYTES = 256 * 2**20
SLOW_BYTES_PER_S = 100e6  # Gigabit Ethernet
WANDB_S = 8.0


def clock(site: Site) -> Finding:
    """Rank 0 says what time it is; how far this host's clock is off, to the time that the word takes."""
    if site.world.rank == 0:
        for number in range(CLOCK_ROUNDS):
            time.sleep(0.2 if site.world.world_size > 1 else 0)  # the others listen by then
            site.board.put(f"clock-{number}", time.time())
        return Finding("ok", "the clocks of all hosts agree" if site.world.world_size > 1 else "one host")
    offs_s = []
    for number in range(CLOCK_ROUNDS):
        then_s = site.board.of(0, f"clock-{number}", 8.0)
        offs_s.append(time.time() - then_s)
    off_s = min(offs_s, key=abs)
    told = f"the clock is {abs(off_s):.1f} s {'ahead of' if off_s > 0 else 'behind'} rank 0's"
    if abs(off_s) > REFUSED_S:
        return Finding("FAIL", told, "set the clocks (chrony, ntpd): object stores refuse such requests")
    return Finding("warning", told, "set the clocks (chrony, ntpd)") if abs(off_s) > SKEW_S else Finding("ok", told)


def collectives(site: Site) -> Finding:
    """The ranks form a process group as in training, and add up a tensor: how fast, and whether the sum is right."""
    world = site.world
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore("group", site.board.store),
        rank=world.rank,
        world_size=world.world_size,
        timeout=timedelta(seconds=GROUP_S),
    )
    with distributed(world) as device:
        if world.world_size == 1:
            dist.destroy_process_group()
            return Finding("ok", f"one rank on {device}: nothing to exchange")
        barrier_s = _median_s(lambda: dist.all_reduce(torch.zeros(1, device=device)), device, 20)
        size = REDUCED_BYTES if device.type == "cpu" else REDUCED_GPU_BYTES
        values = torch.ones(size // 4, device=device)
        took_s = _median_s(lambda: dist.all_reduce(values), device, 3)
        right = bool((values == float(world.world_size) ** 4).all())  # a round before, and the three
    dist.destroy_process_group()
    if not right:
        return Finding("FAIL", "the ranks' sum is wrong", "look for a broken link or GPU before anything is trained")
    bytes_per_s = 2 * (world.world_size - 1) / world.world_size * size / took_s
    told = (
        f"{world.world_size} ranks on {'NCCL' if device.type == 'cuda' else 'gloo'}: all-reduce of {in_bytes(size)} "
        f"in {took_s * 1e3:.0f} ms, {in_bytes(bytes_per_s)}/s by each rank; the smallest takes {barrier_s * 1e3:.1f} ms"
    )
    if bytes_per_s < SLOW_BYTES_PER_S:
        do = "look which network they use: NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME, NCCL_DEBUG=INFO"
        return Finding("warning", f"{told}, slower than Gigabit Ethernet", do)
    return Finding("ok", told)


def _median_s(act: Callable[[], object], device: torch.device, rounds: int) -> float:
    times_s = []
    for _ in range(rounds + 1):  # the first connects
        began_s = time.monotonic()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times_s.append(time.monotonic() - began_s)
    return statistics.median(times_s[1:])


def wandb(site: Site) -> Finding:
    """What W&B will do on rank 0; whether its service answers, where it is to be online."""
    wanted = site.config.log.wandb.mode
    mode = wandb_mode(wanted)
    if mode != "online":
        return Finding("ok", f"{mode}" + ("" if wanted == mode else " (no key)"))
    if not has_wandb_key():
        return Finding(
            "warning", "online, but there is no key: the run is logged offline", "wandb login, or WANDB_API_KEY"
        )
    try:
        urllib.request.urlopen(wandb_url(), timeout=WANDB_S).close()
    except urllib.error.HTTPError:
        pass  # an answer
    except (OSError, ValueError) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())[:120]
        return Finding(
            "warning",
            f"online, but the service does not answer ({reason}): the run is logged offline",
            "let rank 0's host reach it, or set log.wandb.mode=offline and send with `wandb sync` later",
        )
    return Finding("ok", "online: there is a key, and the service answers")
