"""The shell of launch/, with stand-ins for Slurm's commands and for Python: what takes an unlucky moment to see."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from dist_alexnet.config import config_from
from launch.submit import Wish, render

ROOT = Path(__file__).parents[2]
Processes = list["subprocess.Popen[str]"]

# The look at the nodes is the first step, the ranks are the second.
SLURM = {
    "scontrol": 'if [ "$1" = show ]; then echo n1; else echo "$*" >>scontrol; echo requeued >state; fi',
    "squeue": '[ -e away ] || case "$*" in *%e*) echo 2030-01-01T00:00:00 ;; *) echo "$*" >>squeue; cat state ;; esac',
    "srun": """
        if [ ! -e looked ]; then touch looked; sleep "$LOOK_S"; exit "${SEES:-0}"; fi
        echo "$SLURM_JOB_END_TIME" >ends
        echo "$PYTHONPATH" >path
        while [[ $1 = --* ]]; do shift; done
        [ -z "${PYTHON_OF_TEST:-}" ] || PYTHON=$PYTHON_OF_TEST "$@"
        exit 75""",
    "sleep": 'exec /bin/sleep "$(awk -v s="$1" "BEGIN { print s < 2 ? s : 0.01 }")"',
}
# Ranks of training end when they find the file, doctor's do not look for it.
PYTHON = """
case "$*" in
    *"launch folder"*) echo "$RUN"; exit ;;
    *"dist_alexnet doctor"*) [ -z "${BESIDE:-}" ] || { echo '{"code": 75}' >"$RUN/outcome.json"; exit 0; } ;;
    *) [ -z "${BROKEN:-}" ] || { echo '{' >"$RUN/outcome.json"; exit 1; } ;;
esac
touch started
case "$*" in *"dist_alexnet doctor"*) exec sleep 20 ;; esac
for _ in {1..200}; do
    if [ -e "$RUN/stop" ]; then echo '{"code": 75}' >"$RUN/outcome.json"; exit 0; fi
    sleep 0.05
done
exit 1"""


def stand_in(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)
    return folder / name


@pytest.fixture
def processes() -> Iterator[Processes]:
    started: Processes = []
    yield started
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def job(folder: Path, wish: Wish, **variables: str) -> "subprocess.Popen[str]":
    """Start the batch script of a wish, as slurmd would."""
    config = config_from({"run": {"dir": str(folder / "runs")}}, "the test")
    (folder / "code").symlink_to(ROOT)
    (folder / "state").write_text("RUNNING None\n")
    for name, text in SLURM.items():
        stand_in(folder / "bin", name, text)
    script = folder / "job.sbatch"
    script.write_text(render(config, [], wish, folder).replace(f"cd {Path.cwd()}\n", f"cd {folder}\n"))
    given = {"SLURM_JOB_ID": "70", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "1"}
    variables = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "LOOK_S": "0", **given, **variables}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        ["bash", str(script)], env=variables, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def until_there(path: Path) -> None:
    deadline_s = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline_s, f"{path} did not come"
        time.sleep(0.02)


def test_a_controller_that_is_away_gives_no_end_of_the_time(tmp_path: Path, processes: Processes) -> None:
    """An empty answer is last midnight to `date`: the run would stop at its first step."""
    (tmp_path / "away").touch()
    process = job(tmp_path, Wish(nodes=1, ranks_per_node=1, time="30", style="srun"))
    processes.append(process)
    process.communicate(timeout=30)
    assert (tmp_path / "ends").read_text() == "\n"


def test_usr1_while_the_script_looks_at_the_nodes_does_not_end_it(tmp_path: Path, processes: Processes) -> None:
    process = job(tmp_path, Wish(nodes=1, ranks_per_node=1, time="30", style="srun", max_requeues=1), LOOK_S="1")
    processes.append(process)
    until_there(tmp_path / "looked")
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 75, f"{out}\n{err}"
    assert (tmp_path / "scontrol").read_text() == "requeue 70\n"


def test_the_task_of_an_array_puts_back_itself_alone(tmp_path: Path, processes: Processes) -> None:
    """The last task has the number of the array, by which Slurm would put back all tasks, those that are done, too."""
    wish = Wish(nodes=1, ranks_per_node=1, time="30", style="srun", array=3, max_requeues=1)
    process = job(tmp_path, wish, SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="3")
    processes.append(process)
    out, err = process.communicate(timeout=30)
    assert (tmp_path / "scontrol").read_text() == "requeue 70_3\n", f"{out}\n{err}"
    assert "--jobs=70_3 " in (tmp_path / "squeue").read_text()


@pytest.mark.parametrize(("start", "put_back"), [("0", False), ("1", True)])
def test_a_node_that_does_not_see_the_files_ends_the_first_start_alone(
    start: str, put_back: bool, tmp_path: Path, processes: Processes
) -> None:
    """Later it is the node that is wrong: a run of days must not end because a mount is missing somewhere."""
    wish = Wish(nodes=1, ranks_per_node=1, time="30", style="srun", max_requeues=9)
    process = job(tmp_path, wish, SEES="2", SLURM_RESTART_COUNT=start)
    processes.append(process)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2, f"{out}\n{err}"
    assert (tmp_path / "scontrol").exists() is put_back


@pytest.mark.parametrize("style", ["torchrun", "srun"])
def test_packages_of_a_module_are_still_found(
    style: Literal["torchrun", "srun"], tmp_path: Path, processes: Processes
) -> None:
    """`module load` may set PYTHONPATH; the code of the submission comes before what is there."""
    python = stand_in(tmp_path / "bin", "python", "touch ran; echo .")
    given = {"PYTHONPATH": "/opt/torch", "PYTHON_OF_TEST": str(python)}
    process = job(tmp_path, Wish(nodes=1, ranks_per_node=1, time="30", style=style), **given)
    processes.append(process)
    out, err = process.communicate(timeout=30)
    assert (tmp_path / "path").read_text() == f"{tmp_path}/code:/opt/torch\n", f"{out}\n{err}"
    assert (tmp_path / "ran").exists(), f"{out}\n{err}"


def torchrun(folder: Path, stdin: int = subprocess.DEVNULL, **variables: str) -> "subprocess.Popen[str]":
    (folder / "run").mkdir()
    python = stand_in(folder / "bin", "python", PYTHON)
    given = {"PATH": os.environ["PATH"], "RUN": str(folder / "run"), "PYTHON": str(python)}
    command = [str(ROOT / "launch" / "torchrun.sh"), "config.yaml"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**given, **variables},
        stdin=stdin,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        preexec_fn=_hears,
    )


def _hears() -> None:
    """What a shell runs in the background inherits that these are ignored, and a script cannot trap them then."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def test_a_doctor_that_is_broken_off_leaves_the_run_alone(tmp_path: Path, processes: Processes) -> None:
    """The run in the folder may be under way elsewhere: the file `stop` would end it."""
    process = torchrun(tmp_path, COMMAND="doctor")
    processes.append(process)
    until_there(tmp_path / "started")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert not (tmp_path / "run" / "stop").exists()


def test_the_end_of_a_run_beside_a_doctor_is_not_the_doctors(tmp_path: Path, processes: Processes) -> None:
    process = torchrun(tmp_path, COMMAND="doctor", BESIDE="yes")
    processes.append(process)
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_in_a_terminal_of_slurm_a_signal_asks_the_run_to_stop(tmp_path: Path, processes: Processes) -> None:
    """`srun --pty bash` is a step, too, but what is typed there, or a kill, goes to the script and not to the ranks."""
    ours, its = os.openpty()
    process = torchrun(tmp_path, stdin=its, SLURM_STEP_ID="0")
    processes.append(process)
    until_there(tmp_path / "started")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    os.close(ours)
    os.close(its)
    assert process.returncode == 75


def test_in_a_step_of_slurm_the_ranks_have_heard_it_themselves(tmp_path: Path, processes: Processes) -> None:
    process = torchrun(tmp_path, SLURM_STEP_ID="0")
    processes.append(process)
    until_there(tmp_path / "started")
    process.send_signal(signal.SIGUSR1)
    time.sleep(1)
    assert not (tmp_path / "run" / "stop").exists()
    (tmp_path / "run" / "stop").touch()  # as if a rank had heard it
    process.communicate(timeout=20)
    assert process.returncode == 75


def test_an_outcome_that_cannot_be_read_is_no_mistake_of_the_users(tmp_path: Path, processes: Processes) -> None:
    process = torchrun(tmp_path, BROKEN="yes")
    processes.append(process)
    process.communicate(timeout=10)
    assert process.returncode == 1
