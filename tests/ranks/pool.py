"""Ranks that stay: processes of one gloo world that work off questions, so that many small cases cost one start."""

import multiprocessing
import queue
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist


class RankPool:
    """`world_size` processes. `ask` calls a module-level function on every one of them."""

    def __init__(self, world_size: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.world_size = world_size
        self._questions = [context.Queue() for _ in range(world_size)]
        self._answers = context.Queue()
        store = str(folder / f"store-{world_size}")
        self._ranks = [
            context.Process(target=_serve, args=(rank, world_size, store, self._questions[rank], self._answers))
            for rank in range(world_size)
        ]
        for process in self._ranks:
            process.start()

    def ask(self, function: Callable[..., Any], *arguments: Any, timeout_s: float = 120) -> list[Any]:
        """What each rank returns, in order of rank. An error of any rank, or silence, fails the test."""
        for question in self._questions:
            question.put((function, arguments))
        answers: dict[int, Any] = {}
        until_s = time.monotonic() + timeout_s
        while len(answers) < self.world_size:
            try:
                rank, result, error = self._answers.get(timeout=max(0.0, until_s - time.monotonic()))
            except queue.Empty:
                self.close()
                raise AssertionError(f"only ranks {sorted(answers)} answered within {timeout_s} s") from None
            if error is not None:
                self.close()  # the others may wait for it in a collective
                raise AssertionError(f"rank {rank}:\n{error}")
            answers[rank] = result
        return [answers[rank] for rank in range(self.world_size)]

    def close(self) -> None:
        for process in self._ranks:
            process.kill()
        for process in self._ranks:
            process.join()

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _serve(rank: int, world_size: int, store: str, questions: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size)
    while True:
        function, arguments = questions.get()
        try:
            answers.put((rank, function(*arguments), None))
        except Exception:
            answers.put((rank, None, traceback.format_exc()))
