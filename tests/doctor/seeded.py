"""Run by torchrun on two ranks, as two hosts of one rank each: examinations, each with a trouble seeded on rank 1.

python -m tests.doctor.seeded CONFIG CASES.json: leaves <case>.json, the findings as rank 0 has them, beside CASES.json.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.distributed_c10d import PrefixStore

from dist_alexnet.config import load_config
from dist_alexnet.doctor import examine, machine, memory, software, talk
from dist_alexnet.doctor.board import Board, open_board
from dist_alexnet.doctor.finding import Finding
from dist_alexnet.doctor.run import CHECKS
from dist_alexnet.doctor.site import Site
from dist_alexnet.environment import read_world


def other_numpy(patch: pytest.MonkeyPatch, argument: str) -> None:
    real = software._version
    patch.setattr(software, "_version", lambda name: argument if name == "numpy" else real(name))


def other_folder(patch: pytest.MonkeyPatch, argument: str) -> None:
    patch.chdir(argument)


def lock(patch: pytest.MonkeyPatch, argument: str) -> None:
    patch.setenv("TORCH_EXTENSIONS_DIR", argument)


def open_files(patch: pytest.MonkeyPatch, argument: str) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(argument), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def shared_memory(patch: pytest.MonkeyPatch, argument: str) -> None:
    patch.setattr(machine, "SHARED_MEMORY", Path(argument))


def clock(patch: pytest.MonkeyPatch, argument: str) -> None:
    patch.setattr(talk, "time", SimpleNamespace(time=lambda: time.time() + float(argument)))


def little_memory(patch: pytest.MonkeyPatch, argument: str) -> None:
    patch.setattr(memory, "host_bytes", lambda: int(argument))


TROUBLES: dict[str, Callable[[pytest.MonkeyPatch, str], None]] = {
    one.__name__: one for one in (other_numpy, other_folder, lock, open_files, shared_memory, clock, little_memory)
}


def _breaks(site: Site) -> Finding:
    if site.world.rank == 1:
        raise ZeroDivisionError("by the test")
    return Finding("ok", "fine")


def _hangs(site: Site) -> Finding:
    time.sleep(3600 if site.world.rank == 1 else 0)
    return Finding("ok", "fine")


# Checks that only the test has: one that breaks off, one that hangs, and one behind them.
OWN = {
    "breaks": examine.Check("breaks", _breaks, "every rank", limit_s=5),
    "hangs": examine.Check("hangs", _hangs, "every rank", limit_s=1),
    "behind": examine.Check("behind", lambda site: Finding("ok", site.host), "every rank", limit_s=5),
}


def run_case(case: dict[str, Any], config: str, folder: Path, board: Board) -> None:
    """One examination of all ranks."""
    world = replace(read_world(), local_rank=0, local_world_size=1)
    known = {check.name: check for check in CHECKS} | OWN
    checks = [known[name] for name in case["checks"] or [check.name for check in CHECKS]]
    overrides = case["overrides"] + (case["only_rank_1"] if world.rank == 1 else [])
    site = Site(world, f"host-{world.rank}", board, lambda: load_config(config, overrides))
    lines: list[examine.Line] = []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.MonkeyPatch.context() as patch:
        if world.rank == 1 and case["trouble"] == "silent":
            site.board.put("host", [site.host, 0])  # and nothing more
            return
        if world.rank == 1 and case["trouble"]:
            TROUBLES[case["trouble"]](patch, case["argument"])
        passed = examine.examine(site, checks, lines.append)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    if case["trouble"] != "silent":
        passed = examine.settled(site, passed)
    if world.rank == 0:
        found = {line.name: vars(line.finding) for line in lines}
        (folder / f"{case['name']}.json").write_text(json.dumps({"passed": passed, "checks": found}))
    else:
        (folder / f"{case['name']}.passed").write_text(str(passed))


def main() -> None:
    config, cases = sys.argv[1], Path(sys.argv[2])
    examine.GRACE_S = 2.0
    board = open_board(read_world())
    for case in json.loads(cases.read_text()):
        run_case(case, config, cases.parent, Board(PrefixStore(case["name"], board.store), read_world().rank))
    board.put("done", True)
    if read_world().rank == 0:  # the store is in its hands
        board.of_all(range(read_world().world_size), "done", 60)
    sys.stdout.flush()
    os._exit(0)  # as the command leaves


if __name__ == "__main__":
    main()
