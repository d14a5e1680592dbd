"""`dist-alexnet doctor`: what would fail, before a queue slot is spent on it."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from dist_alexnet.config import Config
from dist_alexnet.doctor import data, folders, machine, memory, software, talk
from dist_alexnet.doctor.board import open_board
from dist_alexnet.doctor.examine import Check, Line, examine, settled
from dist_alexnet.doctor.site import Site
from dist_alexnet.environment import read_world
from dist_alexnet.errors import LayoutError
from dist_alexnet.run_folder import host_name
from shards import storage

ANY, CONFIG, JOB = (), ("config",), ("config", "job")
# In the order in which they are told; what may hang for good comes last.
CHECKS = (
    Check("config", software.config, "every rank", ANY, remedy="bring the same file to all hosts"),
    Check("versions", software.versions, "each host", CONFIG, 30, "install the same on all hosts"),
    Check("extension lock", software.extension_lock, "each host", ANY),
    Check("gpus", machine.gpus, "each host", ANY, 30, "take the odd host out, or hide the GPUs of all"),
    Check("clock", talk.clock, "each host", ANY),
    Check("job", data.job, "every rank", CONFIG, 30, "bring the same shards to all hosts"),
    Check("open files", machine.open_files, "every rank", JOB),
    Check("shared memory", machine.shared_memory, "each host", JOB),
    Check("memory", memory.memory, "each host", JOB),
    Check("disks", machine.disks, "each host", JOB),
    Check("run folder", folders.run_folder, "every rank", JOB, 30),
    Check("checkpoint url", folders.checkpoint_url, "each host", CONFIG, 45),
    Check("shards", data.shards, "every rank", JOB, 60),
    Check("wandb", talk.wandb, "first rank", CONFIG),
    Check("collectives", talk.collectives, "every rank", ANY, 50),
)


def doctor(load: Callable[[], Config], shards: int, planned: int | None, json_file: Path | None) -> int:
    """Examine with all ranks; rank 0 says a line a check. The exit code, on every rank: 0, or 2 where a check failed.

    shards: how many of each set to open (0: all). planned: ranks that the run will have, where this process is alone.
    json_file: where rank 0 also writes the lines; `-`: instead of them. Raises LayoutError where this rank cannot meet
    the others, or `planned` is another world than that of the launcher.
    """
    world = read_world()
    if world.launcher != "bare" and planned not in (None, world.world_size):
        raise LayoutError(
            f"--world-size is {planned}, but the launcher has started {world.world_size} ranks: leave it out"
        )
    lines: list[Line] = []

    def say(line: Line) -> None:
        lines.append(line)
        if str(json_file) != "-":
            print(in_words(line), flush=True)

    site = Site(world, host_name(), open_board(world), load, shards, planned)
    passed = examine(site, CHECKS, say)
    if world.rank == 0:
        left_out = [check.name for check in CHECKS if check.name not in {line.name for line in lines}]
        _conclude(lines, left_out, _code(passed), json_file)
    return _code(settled(site, passed))


def _code(passed: bool) -> int:
    return 0 if passed else 2


def in_words(line: Line) -> str:
    """One line for people."""
    do = f" -> {line.finding.do}" if line.finding.do else ""
    return f"{line.finding.level:8}{line.name}: {' '.join(line.finding.found.split())}{do}"


def _conclude(lines: list[Line], left_out: list[str], code: int, json_file: Path | None) -> None:
    if json_file is not None:
        checks = [{"name": line.name, **asdict(line.finding), "took_s": round(line.took_s, 3)} for line in lines]
        text = json.dumps({"code": code, "checks": checks, "left_out": left_out}, indent=1) + "\n"
        if str(json_file) == "-":
            sys.stdout.write(text)
            return
        storage.write_atomic(str(json_file), text.encode())
    if left_out:
        print(f"left out, because of what failed: {', '.join(left_out)}")
    failed = [line.name for line in lines if line.finding.level == "FAIL"]
    print(f"would not run well: {', '.join(failed)}" if failed else "ready to train", flush=True)
