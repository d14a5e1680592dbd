"""Faults put into real ranks, by name, and kinds of cases that write down how the ranks took them.

python -m tests.ranks.night_cases CONFIG LISTED               cases in turn, as tests/ranks/cases.py
python -m tests.ranks.night_cases start FAULT ARGUMENTS...    the command itself, with a fault: [name, values ...]
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

import dist_alexnet.config
import shards.index
from dist_alexnet import __main__ as command
from dist_alexnet import deepspeed_json, engine, job
from dist_alexnet.config import Config
from dist_alexnet.environment import read_world
from dist_alexnet.train import _Run, train
from tests.ranks import cases

SMALL_BUCKET_ELEMENTS = 5000  # conv1 to fc8 all have more: each is cut over several buckets


def index_hidden_from(rank: int) -> AbstractContextManager[Any]:
    """One rank alone does not see the index: a stale mount on its host."""
    read_index = shards.index.read_index

    def elsewhere(url: str) -> Any:
        return read_index(f"/nowhere{url}" if read_world().rank == rank else url)

    return patch.object(job, "read_index", elsewhere)


def config_hidden_from(rank: int) -> AbstractContextManager[Any]:
    """One rank alone has no config file."""
    load_config = dist_alexnet.config.load_config

    def elsewhere(path: str, overrides: Any = ()) -> Config:
        return load_config(f"/nowhere{path}" if read_world().rank == rank else path, overrides)

    return patch.object(dist_alexnet.config, "load_config", elsewhere)


def config_older_on(rank: int) -> AbstractContextManager[Any]:
    """One rank alone reads another text in the config file."""
    load_config = dist_alexnet.config.load_config

    def older(path: str, overrides: Any = ()) -> Config:
        return load_config(path, [*overrides, *(["log.every_steps=7"] if read_world().rank == rank else [])])

    return patch.object(dist_alexnet.config, "load_config", older)


def started_again() -> AbstractContextManager[Any]:
    """What torchrun tells a process when it starts it again, in a launch that is not the one of the cases before."""
    return patch.dict(os.environ, TORCHELASTIC_RESTART_COUNT="1", TORCHELASTIC_RUN_ID="another-launch")


def infinite_gradient(call: int) -> AbstractContextManager[Any]:
    """The backward number `call` gives infinities, on one rank alone; the losses stay as they are."""
    backward, calls = engine.Engine.backward, list[Any]()

    def spoiled(self: engine.Engine, loss: Any) -> None:
        calls.append(loss)
        backward(self, loss * 1e38 * 1e5 if len(calls) == call and dist.get_rank() == 1 else loss)

    return patch.object(engine.Engine, "backward", spoiled)


def all_leave_after(step: int) -> AbstractContextManager[Any]:
    """Every rank ends on an error nobody foresaw, once `step` and what was due after it are done."""
    after = _Run._after

    def left(self: _Run, done: int) -> None:
        after(self, done)
        if done == step:
            raise RuntimeError("left")

    return patch.object(_Run, "_after", left)


def killed_once(rank: int, step: int, marker: str) -> AbstractContextManager[Any]:
    """One rank is killed after `step`, before anything due there; not again once `marker` is there.

    The marker says whether the run folder had an outcome.json then.
    """
    after = _Run._after

    def killed(self: _Run, done: int) -> None:
        if done == step and dist.get_rank() == rank and not Path(marker).exists():
            Path(marker).write_text(json.dumps((self.folder / "outcome.json").exists()))
            os.kill(os.getpid(), signal.SIGKILL)
        after(self, done)

    return patch.object(_Run, "_after", killed)


@contextmanager
def damaged(run_folder: str) -> Iterator[None]:
    """One byte of every committed checkpoint of a run is another."""
    if dist.get_rank() == 0:
        commits = sorted(Path(run_folder).glob("checkpoints/*/*/COMMIT"))
        assert len(commits) == 2
        for commit in commits:
            victim = max(commit.parent.glob("*.distcp"))
            data = bytearray(victim.read_bytes())
            data[len(data) // 2] ^= 1
            victim.write_bytes(data)
    dist.barrier()
    yield


@contextmanager
def small_buckets() -> Iterator[None]:
    """DeepSpeed as a net of full size meets it: many buckets a tensor, and no parameter of ZeRO 3 stays gathered."""
    derived, made = deepspeed_json.deepspeed_json, list[Any]()
    initialize = engine._initialize

    def smaller(config: Config, world_size: int) -> dict[str, Any]:
        values = derived(config, world_size)
        values["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 1000}
        return values

    def seen(*arguments: Any) -> Any:
        made.append(initialize(*arguments))
        return made[-1]

    with (
        patch.object(deepspeed_json, "BUCKET_ELEMENTS", SMALL_BUCKET_ELEMENTS),
        patch.object(engine, "deepspeed_json", smaller),
        patch.object(engine, "_initialize", seen),
    ):
        yield
    assert [one.zero_reduce_bucket_size() for one in made] == [SMALL_BUCKET_ELEMENTS]
    assert [one.zero_allgather_bucket_size() for one in made] == [SMALL_BUCKET_ELEMENTS]


FAULTS: dict[str, Callable[..., AbstractContextManager[Any]]] = {
    "none": nullcontext,
    **{
        fault.__name__: fault
        for fault in (
            index_hidden_from,
            config_hidden_from,
            config_older_on,
            started_again,
            infinite_gradient,
            all_leave_after,
            killed_once,
            damaged,
            small_buckets,
        )
    },
}


def with_fault(fault: list[Any]) -> AbstractContextManager[Any]:
    return FAULTS[fault[0]](*fault[1:])


def faulty_train(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Train with a fault, and write down the error of each rank."""
    error: Exception | None = None
    with with_fault(extra.get("fault", ["none"])):
        try:
            train(config, extra.get("resume", "auto"))
        except Exception as caught:
            error = caught
    record(config, name, {"error": type(error).__name__ if error else None, "said": str(error)})


def faulty_command(config: Config, name: str, extra: dict[str, Any]) -> None:
    """The command with a fault; each rank's exit code, seconds and stderr, and which files it touched, all runs'."""
    said, runs = StringIO(), Path(config.run.dir)
    with with_fault(extra["fault"]):
        before, began_s = contents(runs), time.monotonic()
        dist.barrier()
        with redirect_stderr(said):
            try:
                code: Any = command.run(extra["arguments"])
            except SystemExit as left:
                code = left.code
        spent_s = time.monotonic() - began_s
    dist.barrier()
    after = contents(runs)
    touched = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    record(config, name, {"code": code, "spent_s": spent_s, "said": said.getvalue(), "touched": touched})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def record(config: Config, name: str, values: dict[str, Any]) -> None:
    folder = Path(config.run.dir).parent / "night"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}-{dist.get_rank()}.json").write_text(json.dumps(values))


def main(arguments: list[str]) -> None:
    if arguments[0] == "start":
        sys.argv[1:] = arguments[2:]
        with with_fault(json.loads(arguments[1])):
            command.main()
    cases.KINDS |= {"faulty_train": faulty_train, "faulty_command": faulty_command}
    cases.main(*arguments)
    command.leave(0)


if __name__ == "__main__":
    main(sys.argv[1:])
