"""Starts of a command as a scheduler would make them, and their processes, found and ended from outside (Linux).

Every process of a start carries a mark in its environment, wherever its parent has gone: so none is ever left behind.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dist_alexnet.environment import for_child

MARK = "DIST_ALEXNET_DRILL"
GONE_S = 10.0  # how long a process that was killed may take to go


class Start:
    """A running command, its output in a file."""

    def __init__(self, command: Sequence[str], log: Path, mark: str, extra: Mapping[str, str]) -> None:
        """mark: carried by all its processes; extra: more for their environment."""
        self.log, self.mark = log, mark
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            self.launcher = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=for_child({**extra, MARK: mark}),
                start_new_session=True,  # Ctrl-C at the terminal is the drill's own
            )

    @property
    def running(self) -> bool:
        """Whether the launcher is; its ranks may go on without it."""
        return self.launcher.poll() is None

    def said(self, words: str) -> bool:
        """Whether the output holds these words so far."""
        return words in self.log.read_text(errors="replace")

    def ranks(self) -> dict[int, int]:
        """rank -> pid, of those on this host."""
        return ranks_with(self.mark)

    def wait(self, limit_s: float) -> bool:
        """Whether launcher and processes were all gone within the limit."""
        until_s = time.monotonic() + limit_s
        while self.running or processes_with(self.mark):
            if time.monotonic() > until_s:
                return False
            time.sleep(0.05)
        return True


def processes_with(mark: str) -> dict[int, Mapping[str, str]]:
    """pid -> environment of every process of this user that carries the mark; the dead that nobody waits for not."""
    found: dict[int, Mapping[str, str]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            environ = _environ(folder)
            if environ.get(MARK) == mark:
                found[int(folder.name)] = environ
    return found


def ranks_with(mark: str) -> dict[int, int]:
    """rank -> pid. What a rank has started itself carries its number, too, but has a parent that does."""
    numbered = {pid: _number(environ) for pid, environ in processes_with(mark).items()}
    return {
        number: pid for pid, number in numbered.items() if number is not None and numbered.get(_parent(pid)) is None
    }


def end_all(mark: str, start: Start | None = None) -> None:
    """SIGKILL to every process that carries the mark, until none is left. Raises TimeoutError where one stays."""
    until_s = time.monotonic() + GONE_S
    while left := processes_with(mark):
        for pid in left:
            kill(pid, signal.SIGKILL)
        if time.monotonic() > until_s:
            raise TimeoutError(f"processes {sorted(left)} do not end by SIGKILL")
        time.sleep(0.05)
    if start is not None:
        start.launcher.wait(GONE_S)


def kill(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that has gone by itself is none the worse."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _environ(folder: Path) -> dict[str, str]:
    try:
        entries = (folder / "environ").read_bytes().split(b"\0")
    except OSError:  # gone, or not ours
        return {}
    pairs = (entry.decode(errors="replace").partition("=") for entry in entries if entry)
    return {name: value for name, _, value in pairs}


def _number(environ: Mapping[str, str]) -> int | None:
    number = environ.get("RANK", environ.get("SLURM_PROCID", ""))
    return int(number) if number.isdigit() else None


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
