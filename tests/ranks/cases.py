"""What the ranks of a torchrun start do, one case after the other. Run by tests/ranks/harness.py."""

import errno
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from dist_alexnet.__main__ import leave
from dist_alexnet.checkpoint import flat, store
from dist_alexnet.config import Config, load_config
from dist_alexnet.environment import read_world
from dist_alexnet.errors import StopRequested
from dist_alexnet.guard.divergence import Fault, Skipped
from dist_alexnet.job import make_job
from dist_alexnet.judging.judge import judge
from dist_alexnet.parallel.start import distributed
from dist_alexnet.standing import roll_back
from dist_alexnet.track.tracker import Tracker
from dist_alexnet.train import _Run, train


def save_again(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Load a run's newest checkpoint on this layout, and save it at once under another name."""
    run = _Run(config, torch.device("cpu"), "auto")
    run.job = make_job(config, dist.get_world_size())
    run.prepare()
    step = run.take_up()
    assert step > 0
    to = Path(config.run.dir) / name
    parts = run.engine.fragments_to_save()
    store.save(to, parts, step=step, generation=1, layout={}, versions={}, state={"config": {}})


def evaluated(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Evaluate a checkpoint, or the average of several, on this world."""
    result = judge(extra["checkpoints"], config.data.val or "", **extra.get("asked", {}))
    if dist.get_rank() == 0:
        (Path(config.run.dir) / f"{name}.json").write_text(json.dumps(result.as_dict()))


def killed_in_save(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Train, but rank `extra["rank"]` is killed in the save of step `extra["step"]`: in its data, or before COMMIT."""
    if extra["where"] == "data":
        write = flat.FlatWriter.write_data

        def torn(writer: Any, plan: Any, planner: Any) -> Any:
            done = write(writer, plan, planner)
            if f"step-{extra['step']:08d}" in str(writer.folder) and dist.get_rank() == extra["rank"]:
                for path in Path(writer.folder.url).glob(f"__{dist.get_rank()}_*"):
                    os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        flat.FlatWriter.write_data = torn  # type: ignore[method-assign]
    else:
        commit = store._commit

        def never(folder: Any, record: Any) -> None:
            if record.step == extra["step"]:
                os.kill(os.getpid(), signal.SIGKILL)
            commit(folder, record)

        store._commit = never
    train(config)


def frozen_in_save(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Train, but stand still (SIGSTOP) once all of step `extra["step"]` is written, before its COMMIT."""
    commit = store._commit

    def late(folder: Any, record: Any) -> None:
        if record.step == extra["step"]:
            Path(extra["mark"]).write_text(str(os.getpid()))
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        commit(folder, record)

    with patch.object(store, "_commit", late):
        train(config)


def stopped_in_evaluation(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Train, and be asked to stop when the evaluation of `extra["step"]` has begun."""

    class Asked(_Run):
        def _evaluate(self, step: int, index: Any) -> float:
            if step == extra["step"]:
                os.kill(os.getpid(), signal.SIGUSR2)
            return super()._evaluate(step, index)

    with suppress(StopRequested):
        Asked(config, torch.device("cpu"), "auto").story()


def slow_to_say_so(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Train, be asked to stop, and let W&B hold rank 0; says whether the end was written down when a rank left."""
    close = Tracker.close

    def slow(tracker: Tracker, exit_code: int = 0) -> None:
        if dist.get_rank() == 0:
            time.sleep(2)
        close(tracker, exit_code)

    class Asked(_Run):
        def _step(self, step: int, batches: Any) -> None:
            super()._step(step, batches)
            if step == extra["step"]:
                os.kill(os.getpid(), signal.SIGUSR2)

    with suppress(StopRequested), patch.object(Tracker, "close", slow):
        Asked(config, torch.device("cpu"), "auto").story()
    said = (config.run_folder / "outcome.json").exists()
    (Path(config.run.dir) / f"{name}-{dist.get_rank()}.json").write_text(json.dumps(said))


def other_run_goes_on(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Take up what another run (steps 3) has come to, and roll back once that one has gone on to step 6."""
    other = Path(config.run.dir) / f"{name}-other"
    for steps in (3, 6):
        longer = config.model_copy(update={"run": config.run.model_copy(update={"name": other.name, "steps": steps})})
        train(longer)
        if steps == 3:
            run = _Run(config, torch.device("cpu"), str(other))
            run.job = make_job(config, dist.get_world_size())
            run.prepare()
            assert run.take_up() == 3
    back = roll_back(config, run.job, run.resume, run.kept, Fault(5, "a fault", "rollback"))
    batch_size = config.data.batch_size
    assert (back.step, run.guard.skipped) == (3, [Skipped(3 * batch_size, 5 * batch_size, "a fault")])


def full_disk(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Train, but rank 1 finds the disk full when it writes the chunks of these steps."""
    write = flat.FlatWriter.write_data

    def full(writer: Any, plan: Any, planner: Any) -> Any:
        if dist.get_rank() == 1 and any(f"step-{step:08d}" in str(writer.folder) for step in extra["steps"]):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(writer, plan, planner)

    with patch.object(flat.FlatWriter, "write_data", full):
        train(config)


def wire(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Train, and count what the kernel has sent on this rank's TCP connections in each step."""
    steps: list[int] = []

    class Counted(_Run):
        def _step(self, step: int, batches: Any) -> None:
            before = tcp_bytes_sent()
            super()._step(step, batches)
            dist.barrier()  # so that nothing of this step is still on its way; a few bytes of its own
            steps.append(tcp_bytes_sent() - before)

    Counted(config, torch.device("cpu"), "never").story()
    (Path(config.run.dir) / f"{name}-{dist.get_rank()}.json").write_text(json.dumps(steps))


def tcp_bytes_sent() -> int:
    """Of all TCP connections of this process, by the kernel's count (tcp_info.tcpi_bytes_sent, Linux 4.19 or newer).

    Without what it sent twice (tcpi_bytes_retrans), which on a busy machine is no part of what we asked it to send.
    """
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        if not os.path.islink(entry) or not os.readlink(entry).startswith("socket:"):
            continue
        with socket.socket(fileno=os.dup(int(entry.name))) as opened:
            if opened.type == socket.SOCK_STREAM and opened.family in (socket.AF_INET, socket.AF_INET6):
                sent, again = struct.unpack_from("QQ", opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 200)
                total += sent - again
    return total


KINDS = {
    "wire": wire,
    "stopped_in_evaluation": stopped_in_evaluation,
    "frozen_in_save": frozen_in_save,
    "slow_to_say_so": slow_to_say_so,
    "other_run_goes_on": other_run_goes_on,
    "full_disk": full_disk,
    "train": lambda config, name, extra: train(config, **extra),
    "save_again": save_again,
    "evaluated": evaluated,
    "killed_in_save": killed_in_save,
}


def main(config: str, listed: str) -> None:
    with distributed(read_world()):
        for case in json.loads(Path(listed).read_text()):
            overrides = list(case["overrides"])
            if not any(override.startswith("run.name=") for override in overrides):
                overrides.append(f"run.name={case['name']}")
            KINDS[case["kind"]](load_config(config, overrides), case["name"], case["extra"])
            dist.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
