"""Saving beside training: a copy of the state in host memory is written by a thread while the next steps run.

All ranks call `save` at the same steps. The threads agree in a process group of their own, so that their collectives
never meet those of training. A save that fails on any rank has failed on all of them; training goes on until too many
in a row have.
"""

import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_alexnet.checkpoint import store
from dist_alexnet.checkpoint.finding import ROOT
from dist_alexnet.checkpoint.place import Place
from dist_alexnet.checkpoint.pruning import prune
from dist_alexnet.config import Checkpoint
from dist_alexnet.engine import Fragment
from shards.errors import InputError, StorageFault

CLOSE_LIMIT_S = 10.0  # how long a start that has failed waits for the write that is under way


class Saver:
    """Writes checkpoints of one start of a run, one at a time."""

    def __init__(self, run_folder: Path, settings: Checkpoint) -> None:
        self._root = Place.at(settings.url) if settings.url else Place.at(run_folder) / ROOT
        self._settings, self._max_failures = settings, settings.max_failures
        self._group = dist.new_group(backend="gloo") if settings.background else None
        self.took_s = 0.0  # the last save, from its copy to its COMMIT
        self._staged: dict[tuple[str, str], Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None  # of the last save
        self._failures = 0
        self._news: list[str] = []
        self._committed: list[tuple[int, Place]] = []

    def save(self, fragments: Iterable[Fragment], *, step: int, spared: int | None = None, **facts: Any) -> None:
        """Copy the fragments, and write them with `facts` (of store.save). Waits for the save before.

        spared: a step whose checkpoint stays, however old. Raises StorageFault where too many saves in a row have
        failed.
        """
        self.wait()
        live = list(fragments)
        staged = [self._stage(fragment) for fragment in live]
        if any(fragment.values.device.type == "cuda" for fragment in live):
            torch.cuda.synchronize()  # the copies are only queued so far, and the thread reads what they bring
        self._thread = threading.Thread(target=self._write, args=(staged, step, spared, facts), daemon=True)
        self._thread.start()
        if not self._settings.background:
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written. Raises StorageFault where too many saves in a row have failed."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._error is None:
            self._failures = 0
        elif not isinstance(self._error, StorageFault):
            raise self._error
        else:
            self._failures += 1
            if self._failures > self._max_failures:
                raise self._error

    def finish(self) -> None:
        """The last save must stand: wait for it. Raises StorageFault where it failed."""
        self.wait()
        if self._error is not None:
            raise self._error

    def news(self) -> list[str]:
        """What has gone wrong since the last call, in sentences."""
        told, self._news = self._news, []
        return told

    def committed(self) -> list[tuple[int, Place]]:
        """Step and folder of the checkpoints that stand since the last call."""
        told, self._committed = self._committed, []
        return told

    def close(self) -> None:
        """Give the write under way a while; what it does not finish does not count."""
        if self._thread is not None:
            self._thread.join(CLOSE_LIMIT_S)

    def _stage(self, fragment: Fragment) -> Fragment:
        """The fragment in host memory that the next save uses again."""
        key = (fragment.name, fragment.kind)
        held = self._staged.get(key)
        if held is None or held.shape != fragment.values.shape:
            on_gpu = fragment.values.device.type == "cuda"
            held = torch.empty(fragment.values.shape, dtype=fragment.values.dtype, pin_memory=on_gpu)
            self._staged[key] = held
        held.copy_(fragment.values, non_blocking=True)
        return replace(fragment, values=held)

    def _write(self, staged: list[Fragment], step: int, spared: int | None, facts: dict[str, Any]) -> None:
        began_s, self._error = time.monotonic(), None
        try:
            folder = store.save(self._root, staged, step=step, group=self._group, **facts)
            self._committed.append((step, folder))
            if dist.get_rank() == 0:
                self._make_room(step, spared if self._settings.keep_best else None, facts["generation"])
        except BaseException as error:
            self._error = error
            self._news.append(f"the save of step {step} failed, the last good one stands: {error}")
        self.took_s = time.monotonic() - began_s

    def _make_room(self, step: int, spared: int | None, generation: int) -> None:
        """Remove what is no longer to be kept. Where that fails, the save has not."""
        keep, every_steps = self._settings.keep, self._settings.keep_every_steps
        try:
            prune(self._root, keep, step, every_steps, spared, generation=generation)
        except (StorageFault, InputError) as error:
            self._news.append(f"old checkpoints could not be removed after step {step}: {error}")
