"""Two hosts that are this machine, behind a real sshd of the test's own: on 127.0.0.1 (n1) and 127.0.0.2 (n2)."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SSHD = "/usr/sbin/sshd"


def find_sshd() -> None:
    """Install Debian's sshd where root may; skip the test where there is none."""
    if Path(SSHD).exists() and shutil.which("ssh"):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        install = ["apt-get", "install", "-y", "--no-install-recommends", "openssh-server", "openssh-client"]
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], install):
            subprocess.run(command, env=quiet, capture_output=True, timeout=300, check=False)
    if not Path(SSHD).exists() or not shutil.which("ssh"):
        pytest.skip("there is no sshd, and it could not be installed (apt-get install openssh-server, as root)")


@contextmanager
def two_hosts(folder: Path) -> Iterator[str]:
    """The ssh command that knows n1, n2, and `away`, where nobody listens."""
    find_sshd()
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, nobody = one.getsockname()[1], other.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nListenAddress 127.0.0.2\nHostKey {folder}/host_key\n"
        f"AuthorizedKeysFile {folder}/user_key.pub\nPidFile none\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    hosts = {"n1": ("127.0.0.1", port), "n2": ("127.0.0.2", port), "away": ("127.0.0.1", nobody)}
    (folder / "ssh_config").write_text(
        "".join(f"Host {name}\n  HostName {address}\n  Port {at}\n" for name, (address, at) in hosts.items())
        + f"Host *\n  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
        f"  UserKnownHostsFile {folder}/known_hosts\n  LogLevel ERROR\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # Debian's sshd of root wants it
    with (folder / "sshd.log").open("w") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        _wait_for(port, folder / "sshd.log")
        yield f"ssh -F {folder}/ssh_config"
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(port: int, log: Path) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.2", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"sshd does not listen: {log.read_text()}")
