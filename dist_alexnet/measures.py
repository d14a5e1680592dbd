"""What a line of metrics says beside loss and accuracy: rates, norms, times, memory and what crosses the wires.

A step costs some readings of a clock. The device, and the other ranks, are asked only when a line is due. What each
key means is in track/keys.py.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from dist_alexnet.config import Config
from dist_alexnet.data.batch import Batch, beside_stream
from dist_alexnet.engine import Engine
from dist_alexnet.guard.divergence import DivergenceGuard
from dist_alexnet.guard.stragglers import Stragglers
from dist_alexnet.job import Job
from dist_alexnet.network.build import Arithmetic
from dist_alexnet.network.cost import FP32_BYTES, data_bytes, layer_costs, sent_on
from dist_alexnet.norms import Norms
from dist_alexnet.optim.schedules import Rates
from dist_alexnet.track.peaks import peak_tflops

PASSES = 3  # over the products of a forward: that one, and two backward, by the inputs and by the weights
FLOPS_OF_A_MAC = 2
MEMORY = Path("/proc/self/statm")  # Linux


@dataclass
class _Interval:
    """What this rank has noted since the last line."""

    step: int
    began_s: float = field(default_factory=time.monotonic)
    steps_s: list[float] = field(default_factory=list)
    wait_s: float = 0.0
    fetch_s: float = 0.0
    decode_s: float = 0.0
    copies: list[tuple[torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)


class Measures:
    """Of one start, on one rank. `begin` opens the interval of a line, `values` reads it."""

    def __init__(
        self, config: Config, job: Job, arithmetic: Arithmetic, engine: Engine, stragglers: Stragglers
    ) -> None:
        self._config, self._job, self._engine, self._stragglers = config, job, engine, stragglers
        self.norms = Norms(engine)
        self._device = engine.learned[0].parameter.device
        self._image_flops, self._peak_flops = image_flops(job), _peak_flops(config, arithmetic, self._device)
        self._wire_bytes = float(wire_bytes(config, job, arithmetic))
        self._since = _Interval(0)

    def begin(self, step: int) -> None:
        """A new line begins after `step`."""
        self._since = _Interval(step)

    # ---- what a step tells ------------------------------------------------------------------------------------------

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a step, from its first batch to its update."""
        began_s = time.perf_counter()
        yield
        self._since.steps_s.append(time.perf_counter() - began_s)

    def loaded(self, batches: Iterator[Batch]) -> Batch:
        """The next batch."""
        since, asked_s = self._since, time.perf_counter()
        batch = next(batches)
        since.wait_s += time.perf_counter() - asked_s
        since.fetch_s += batch.fetch_s
        since.decode_s += batch.decode_s
        return batch

    @contextmanager
    def copying(self) -> Iterator[None]:
        """Around a batch's way to the device. To a GPU it goes on a stream of its own, which is timed by events."""
        if self._device.type != "cuda":
            yield
            return
        stream = beside_stream(self._device)
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record(stream)
        yield
        ended.record(stream)
        self._since.copies.append((began, ended))

    def pause(self, spent_s: float) -> None:
        """So long this rank did not train: it evaluated, or saved."""
        self._since.began_s += spent_s

    # ---- what a line says -------------------------------------------------------------------------------------------

    def values(self, step: int, rates: Rates, guard: DivergenceGuard) -> dict[str, float]:
        """All of a line after `step`, whose learning rates are `rates`. All ranks call it."""
        steps = max(1, step - self._since.step)
        images_per_s = steps * self._config.data.batch_size / (time.monotonic() - self._since.began_s)
        return {
            **optimizer_values(rates, self._engine, guard),
            **self.norms.values(),
            **self._of_all_ranks(steps),
            **self._speed(images_per_s),
            "data/wait_s": self._since.wait_s / steps,
            "wire/bytes_per_step": self._wire_bytes,
        }

    def _of_all_ranks(self, steps: int) -> dict[str, float]:
        """What each rank has measured, from the one all-gather that looks for slow ranks."""
        since = self._since
        median_s, p95_s, longest_s = np.quantile(since.steps_s or [0.0], [0.5, 0.95, 1.0]).tolist()
        copied_s = sum(began.elapsed_time(ended) for began, ended in since.copies) / 1000
        own = {
            "time/step_p50_s": median_s,
            "time/step_p95_s": p95_s,
            "time/step_max_s": longest_s,
            "memory/device_peak_bytes": _device_peak_bytes(self._device),
            "memory/host_rss_bytes": _resident_bytes(),
            "data/fetch_s": since.fetch_s / steps,
            "data/decode_s": since.decode_s / steps,
            "data/transfer_s": copied_s / steps,
        }
        values = self._stragglers.measure(steps, list(own.values()))
        for key, ranks in zip(own, zip(*self._stragglers.beside, strict=True), strict=True):
            values[key] = mean(ranks) if key.startswith("data/") else max(ranks)
        if self._device.type != "cuda":
            del values["data/transfer_s"], values["memory/device_peak_bytes"]
        if not values["memory/host_rss_bytes"]:
            del values["memory/host_rss_bytes"]
        return values

    def _speed(self, images_per_s: float) -> dict[str, float]:
        of_one = images_per_s / self._job.layout.world_size
        values = {"speed/images_per_s": images_per_s, "speed/images_per_s_per_device": of_one}
        if self._peak_flops is not None:
            values["speed/mfu"] = of_one * self._image_flops / self._peak_flops
        return values


def optimizer_values(rates: Rates, engine: Engine, guard: DivergenceGuard) -> dict[str, float]:
    """The rate of weights; others only where they are not the network's multiples of it; steps left out."""
    values = {"optim/lr": rates.base}
    for one in engine.learned:
        rate = rates.of(one.layer, one.role, one.lr)
        if not math.isclose(rate, rates.base * one.lr, rel_tol=1e-9):
            values[f"optim/lr/{one.layer}.{one.role}"] = rate
    if engine.loss_scale is not None:
        values["optim/loss_scale"] = engine.loss_scale.scale
    if engine.loss_scale is not None or guard.may_skip:
        scaled = 0 if engine.loss_scale is None else engine.loss_scale.dropped_steps
        values["train/dropped_steps"] = float(scaled + guard.skipped_steps)
    return values


def image_flops(job: Job) -> int:
    """Of the products of one image in training, by the usual count: 3 forwards, 2 operations a multiplication."""
    return PASSES * FLOPS_OF_A_MAC * sum(cost.macs for cost in layer_costs(job.network))


def wire_bytes(config: Config, job: Job, arithmetic: Arithmetic) -> float:
    """What each rank sends in a step by network/cost.py: inside its model group, and over the data ranks."""
    sent = sent_on(job.network, job.layout)
    dtype = arithmetic.exchange or arithmetic.compute_dtype
    element_bytes = FP32_BYTES if dtype is None else dtype.itemsize
    inside = sent.step_bytes(config.data.batch_size // job.layout.data, element_bytes)
    across = data_bytes(sent.held, job.layout.data, config.parallel.zero_stage, job.batches.accumulation)
    return float(inside + across)


def _peak_flops(config: Config, arithmetic: Arithmetic, device: torch.device) -> float | None:
    """Of one device. None where it is neither told nor known: then there is no speed/mfu."""
    tflops = config.log.peak_tflops
    if tflops is None and device.type == "cuda":
        tflops = peak_tflops(torch.cuda.get_device_name(device), half=arithmetic.compute_dtype is not None)
    return None if tflops is None else tflops * 1e12


def _device_peak_bytes(device: torch.device) -> float:
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0.0


def _resident_bytes() -> float:
    """Of this process; 0 where the system does not say."""
    return float(MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if MEMORY.exists() else 0.0
