"""What a killed build copied meanwhile is taken away by the next one; what a living one copies is not."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shards.errors import InputError
from shards.sources.spool import spool_folder

ROOT = Path(__file__).parents[2]
COPY = """
import sys, time
from pathlib import Path
from shards.sources.spool import spool_folder
with spool_folder(Path(sys.argv[1])) as folder:
    Path(folder, "train.pictures").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    time.sleep(60)
"""


def test_rests_go_and_folders_in_use_stay(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_bytes(b"")
    child = subprocess.Popen([sys.executable, "-c", COPY, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert child.stdout is not None
    try:
        theirs = Path(child.stdout.readline().strip())
        with spool_folder(tmp_path) as ours:
            assert (theirs / "train.pictures").exists()
            assert Path(ours).parent == tmp_path
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert theirs.exists()
    with spool_folder(tmp_path) as ours:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["mine", Path(ours).name])
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "file"]


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="for --spool"), spool_folder(tmp_path / "none"):
        pass
