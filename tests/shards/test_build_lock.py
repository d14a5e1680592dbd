"""One build at a time of a split in a folder, and none that a killed build keeps out."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shards import locks, storage
from shards.build import build_shards
from shards.errors import InputError
from tests.shards.pictures import NoiseSource
from tests.shards.test_build import BUILD_AND_STALL, ROOT, sums


def test_the_second_build_is_refused_and_the_first_goes_on_after_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    child = subprocess.Popen([sys.executable, "-c", BUILD_AND_STALL, str(folder)], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"stalled\n"
        before = sums(folder)
        says = rf"another build of split train .* \(process {child.pid} on {socket.gethostname()}\): let it end"
        with pytest.raises(InputError, match=says):
            build_shards(NoiseSource(12), "train", str(folder), samples_per_shard=3)
        assert sums(folder) == before
        build_shards(NoiseSource(2), "val", str(folder))  # another split is no rival
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    index = build_shards(NoiseSource(12), "train", str(folder), samples_per_shard=3)
    assert len(index) == 12
    assert not list(folder.glob(".*"))


def test_a_build_that_fails_keeps_nobody_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is full of noise"):
        build_shards(_Bad(3), "train", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == []
    build_shards(NoiseSource(3), "train", str(tmp_path))


def test_a_file_system_without_locks_is_built_on_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)  # type: ignore[attr-defined]
    assert len(build_shards(NoiseSource(3), "train", str(tmp_path))) == 3


def gone() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize(
    ("host", "pid", "refused"),
    [
        ("elsewhere", 1, r"process 1 on elsewhere\).* take memory://lock-elsewhere/set/\.train\.build\.lock away"),
        ("here", "parent", r"process \d+ on "),
        ("here", "gone", None),
        ("here", "own", None),
        ("none", "none", "an unknown host"),
    ],
)
def test_in_an_object_store_a_lock_file_is_made_by_one_only(host: str, pid: str | int, refused: str | None) -> None:
    url = f"memory://lock-{host if host == 'elsewhere' else pid}/set"
    number = {"parent": os.getppid(), "own": os.getpid(), "gone": gone()}.get(str(pid), pid)
    lock = json.dumps({"host": socket.gethostname() if host == "here" else host, "pid": number})
    storage.write_atomic(f"{url}/.train.build.lock", b"{" if host == "none" else lock.encode())
    if refused is None:
        assert len(build_shards(NoiseSource(3), "train", url)) == 3
        assert not storage.exists(f"{url}/.train.build.lock")
    else:
        with pytest.raises(InputError, match=refused):
            build_shards(NoiseSource(3), "train", url)
        assert storage.exists(f"{url}/.train.build.lock")
        assert not storage.exists(f"{url}/train-000000.tar")


class _Bad(NoiseSource):
    def samples(self, split: str) -> list:  # type: ignore[type-arg]
        def load() -> bytes:
            raise InputError("the source is full of noise")

        return [type(one)(one.key, one.label, load) for one in super().samples(split)]
