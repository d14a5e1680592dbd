"""A run over the hosts of a hostfile, by ssh: each host runs launch/on_host.sh, which runs launch/torchrun.sh.

What this process tells a host goes down the stdin of its ssh: settings, then names of signals, and a sign of life every
few seconds. A host that hears nothing any more stops its ranks by itself.
"""

import queue
import random
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dist_alexnet.config import batches_on, load_config
from launch.hostfile import Host, read_hostfile, read_settings
from shards.errors import InputError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SIGN_OF_LIFE_S = 5.0
PROBE_S = 30.0
OTHERS_S = 30.0  # that hosts have to end by themselves when another has failed
END_S = 10.0
QUIETLY = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=10")
SAID = {0: "done", 75: "stopped on request"}


@dataclass(frozen=True)
class Wish:
    """What is to be started: on which hosts, by which ssh (with options), meeting where (host:port)."""

    config: Path
    overrides: tuple[str, ...]
    hosts: list[Host]
    settings: list[str]
    ssh: tuple[str, ...]
    endpoint: str | None
    max_restarts: int
    command: str


def launch(
    hostfile: Path,
    config: Path,
    overrides: Sequence[str],
    ssh: str = "ssh",
    endpoint: str | None = None,
    max_restarts: int = 0,
    command: str = "train",
) -> int:
    """Train on the hosts, or another command; the exit code of launch/ scripts.

    Raises InputError before anything is started.
    """
    hosts = read_hostfile(hostfile)
    batches_on(load_config(config, overrides), sum(host.slots for host in hosts))
    settings = read_settings([Path.cwd(), Path.home()])
    try:
        client = (*shlex.split(ssh), *QUIETLY)
    except ValueError as error:
        raise InputError(f"--ssh is {ssh!r}, expected a command as a shell takes it ({error})") from error
    wish = Wish(config, tuple(overrides), hosts, settings, client, endpoint, max_restarts, command)
    _check_hosts(wish)
    with _signals_heard() as events:
        return _Launch(wish, events).story()


def _check_hosts(wish: Wish) -> None:
    """Raise InputError where a host cannot be reached, or has not what is needed."""
    with ThreadPoolExecutor(len(wish.hosts)) as pool:
        for complaint in pool.map(lambda host: _complaint(wish, host), wish.hosts):
            if complaint:
                raise InputError(f"{complaint}; nothing was started")


def _complaint(wish: Wish, host: Host) -> str:
    """What is wrong with a host, in a sentence; empty where nothing is."""
    needed = {
        f"-d {shlex.quote(str(Path.cwd()))}": f"no folder {Path.cwd()}",
        f"-f {shlex.quote(str(_script()))}": f"no {_script()}",
        f"-x {shlex.quote(sys.executable)}": f"no Python {sys.executable}",
        f"-r {shlex.quote(str(wish.config.absolute()))}": f"no config {wish.config.absolute()}",
    }
    tests = [f"test {test} || {{ echo {shlex.quote(missing)}; exit 3; }}" for test, missing in needed.items()]
    try:
        done = subprocess.run(
            [*wish.ssh, "-n", host.name, "; ".join(tests)], capture_output=True, text=True, timeout=PROBE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"host {host.name} does not answer ssh within {PROBE_S:.0f} s: start it, or take it out of the hostfile"
    except OSError as error:
        raise InputError(f"{wish.ssh[0]} cannot be run ({error.strerror}): install an ssh client") from error
    if done.returncode == 3:
        return f"host {host.name} has {done.stdout.strip()}: every host needs the same folders"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"host {host.name} cannot be reached by ssh without a password ({reason.strip()}): try `ssh {host.name}`"
    return ""


class _Launch:
    """One start on all hosts, until the last of them has ended."""

    def __init__(self, wish: Wish, events: "queue.SimpleQueue[str | tuple[int, int]]") -> None:
        self.wish, self.events = wish, events
        self.processes: list[subprocess.Popen[bytes]] = []
        self.codes: dict[int, int] = {}  # by number of the host, in the order in which they ended
        self.others_until_s: float | None = None

    def story(self) -> int:
        """Start, pass signals on, and wait. The exit code."""
        endpoint = self.wish.endpoint or f"{_address(self.wish)}:{random.SystemRandom().randrange(20000, 32000)}"
        meeting = [f"RDZV_ENDPOINT={endpoint}", f"RDZV_ID=hosts-{secrets.token_hex(6)}"]
        try:
            for number in range(len(self.wish.hosts)):
                self._start(number, meeting)
            while len(self.codes) < len(self.processes):
                self._hear()
        finally:
            self._end()
        failed = next((code for code in self.codes.values() if code not in SAID), None)
        if failed is not None:
            return failed if failed == 2 else 1
        return max(self.codes.values())

    def _start(self, number: int, meeting: list[str]) -> None:
        host, wish = self.wish.hosts[number], self.wish
        arguments = [str(wish.config.absolute()), *wish.overrides]
        command = f"cd {shlex.quote(str(Path.cwd()))} && exec bash {shlex.join([str(_script()), *arguments])}"
        process = subprocess.Popen([*wish.ssh, host.name, command], stdin=subprocess.PIPE, start_new_session=True)
        self.processes.append(process)
        settings = [f"NNODES={len(wish.hosts)}", f"NODE_RANK={number}", f"NPROC_PER_NODE={host.slots}"]
        settings += [f"MAX_RESTARTS={wish.max_restarts}", f"PYTHON={sys.executable}", f"COMMAND={wish.command}"]
        self._tell(number, *wish.settings, *settings, *meeting, "")
        threading.Thread(target=lambda: self.events.put((number, process.wait())), daemon=True).start()

    def _hear(self) -> None:
        """One event, or a sign of life to all."""
        try:
            event = self.events.get(timeout=SIGN_OF_LIFE_S)
        except queue.Empty:
            event = ""
        if isinstance(event, tuple):
            self._ended(*event)
        else:
            self._tell_all(event)
        if self.others_until_s is not None and time.monotonic() > self.others_until_s:
            self._tell_all("end")

    def _ended(self, number: int, code: int) -> None:
        self.codes[number] = code
        if code in SAID:
            return
        what = "ssh broke off" if code == 255 else f"exit code {code}"
        print(f"host {self.wish.hosts[number].name} ended: {what}", file=sys.stderr, flush=True)
        if self.others_until_s is None:
            self.others_until_s = time.monotonic() + OTHERS_S

    def _end(self) -> None:
        """Nothing is left behind, however this ends."""
        self._tell_all("end")
        for process in self.processes:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()

    def _tell_all(self, word: str) -> None:
        for number in range(len(self.processes)):
            if number not in self.codes:
                self._tell(number, word)

    def _tell(self, number: int, *lines: str) -> None:
        stdin = self.processes[number].stdin
        assert stdin is not None
        with suppress(OSError):  # it has ended, which is heard elsewhere
            stdin.write("".join(f"{line}\n" for line in lines).encode())
            stdin.flush()


@contextmanager
def _signals_heard() -> Iterator["queue.SimpleQueue[str | tuple[int, int]]"]:
    """A queue that gets the names of signals to this process."""
    events: queue.SimpleQueue[str | tuple[int, int]] = queue.SimpleQueue()
    before = {
        number: signal.signal(number, lambda got, _: events.put(signal.Signals(got).name.removeprefix("SIG")))
        for number in SIGNALS
    }
    try:
        yield events
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _address(wish: Wish) -> str:
    """What the first host is called beyond this host's ssh settings, where its name may be short for it."""
    first = wish.hosts[0].name
    done = subprocess.run([*wish.ssh, "-G", first], capture_output=True, text=True, timeout=PROBE_S, check=False)
    names = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("hostname ")]
    return names[0] if names else first.rpartition("@")[2]


def _script() -> Path:
    return Path(__file__).with_name("on_host.sh")
