"""From a wish to a batch script, and what is refused before Slurm sees anything. No Slurm needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from dist_alexnet.config import config_from, load_config, to_yaml
from dist_alexnet.network.spec import PRESETS
from launch import __main__ as launch
from launch import slurm, snapshot
from launch.submit import Wish, render
from shards.errors import InputError

WISH = Wish(nodes=2, ranks_per_node=4, time="8:00:00", gpus_per_node=4, max_requeues=20, cpus_per_rank=3)
TWO = ("--nodes=2", "--ranks-per-node=4", "--time=30")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "a folder's $HOME"
    folder.mkdir()
    path = folder / "config.yaml"
    path.write_text(to_yaml(config_from({"run": {"name": "one", "dir": str(folder / "runs")}}, "the test")))
    return path


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("30", 1800),
        ("1:30", 90),
        ("8:00:00", 28800),
        ("2-0", 172800),
        ("2-12", 216000),
        ("1-0:30", 88200),
        ("1-00:00:10", 86410),
        ("UNLIMITED", None),
    ],
)
def test_times_as_slurm_writes_them(time: str, expected: int | None) -> None:
    assert slurm.seconds(time) == expected


@pytest.mark.parametrize("style", ["torchrun", "srun"])
def test_the_script_is_bash_and_knows_its_paths(config: Path, style: str) -> None:
    wish = Wish(**{**vars(WISH), "style": style, "options": ("--mem=0", "--comment=two # words")})
    script = render(
        load_config(config), ["data.batch_size=64", "run.name=it's"], wish, config.parent / "launches" / "1"
    )
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "@{" not in script
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    tasks, cpus = (4, 3) if style == "srun" else (1, 12)
    for wanted in (
        f"--ntasks-per-node={tasks}",
        f"--cpus-per-task={cpus}",
        "--gpus-per-node=4",
        "--mem=0",
        "--comment='two # words'",
    ):
        assert f"#SBATCH {wanted}" in lines
    assert "#SBATCH --signal=B:USR1@300" in lines
    names = [line for line in script.splitlines() if line.startswith(("launch=", "run=", "train="))]
    said = subprocess.run(
        ["bash", "-c", "\n".join(names) + '\nprintf "%s\\n" "$launch" "$run" "${train[@]}"'],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert said[0] == str(config.parent / "launches" / "1")
    assert said[1] == str(load_config(config).run_folder)
    assert said[3:] == ["data.batch_size=64", "run.name=it's"]


def test_a_short_job_is_warned_later_and_an_array_has_a_log_a_task(config: Path) -> None:
    wish = Wish(nodes=1, ranks_per_node=1, time="4", array=3)
    script = render(load_config(config), [], wish, config.parent)
    assert "#SBATCH --signal=B:USR1@60\n" in script
    assert "#SBATCH --array=1-3%1\n" in script
    assert "/slurm-%A_%a.out" in script


def test_a_launch_takes_config_and_code_along(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    folder = snapshot.make_launch_folder(run, config)
    assert (folder / "config.yaml").read_text() == config.read_text()
    assert (folder / "code" / "launch" / "torchrun.sh").stat().st_mode & 0o100
    there = "import dist_alexnet.data.decode as d; print(d.__file__, d.decoder_here('auto'))"
    here = "from dist_alexnet.data.decode import decoder_here; print(decoder_here('auto'))"
    command = ["env", f"PYTHONPATH={folder / 'code'}", sys.executable, "-P", "-c"]
    file, decoder = subprocess.run([*command, there], capture_output=True, text=True, check=True).stdout.rsplit(" ", 1)
    assert file == str(folder / "code" / "dist_alexnet" / "data" / "decode.py")
    assert decoder == subprocess.run([*command, here], capture_output=True, text=True, check=True).stdout
    assert snapshot.make_launch_folder(run, config).name == "0002"
    snapshot.take_back(folder)
    assert [path.name for path in (run / "launches").iterdir()] == ["0002"]
    snapshot.take_back(run / "launches" / "0002")
    assert not run.exists()


def test_a_network_of_ones_own_is_taken_along(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is edited while the job waits would be another network, and another run after the next requeue."""
    slurm_that(tmp_path / "bin", monkeypatch, sbatch="echo 70")
    mine = tmp_path / "it's mine.yaml"
    mine.write_text((PRESETS / "cifar-80sec.yaml").read_text())
    named = f"network.name={mine}"
    assert launch.run(["slurm", str(config), *TWO, "--no-check-data", "--", named, "data.batch_size=64"]) == 0
    folder = config.parent / "runs" / "one" / "launches" / "0001"
    assert (folder / "network.yaml").read_text() == mine.read_text()
    names = [line for line in (folder / "job.sbatch").read_text().splitlines() if line.startswith("train=")]
    said = subprocess.run(
        ["bash", "-c", f'{names[0]}\nprintf "%s\n" "${{train[@]}}"'], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert load_config(said[0], said[1:]).network.name == str(folder / "network.yaml")


def test_a_copy_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    for package in snapshot.PACKAGES:
        (project / package).mkdir(parents=True)
    (project / "launch" / ".#snapshot.py").symlink_to("somebody@host.1234")  # as Emacs does
    monkeypatch.setattr(snapshot, "__file__", str(project / "launch" / "snapshot.py"))
    config = tmp_path / "config.yaml"
    config.write_text("")
    assert snapshot.make_launch_folder(tmp_path / "run", config).name == "0001"
    (project / "shards").rmdir()
    with pytest.raises(InputError, match="cannot be written"):
        snapshot.make_launch_folder(tmp_path / "run", config)
    assert [path.name for path in (tmp_path / "run" / "launches").iterdir()] == ["0001"]


def slurm_that(folder: Path, monkeypatch: pytest.MonkeyPatch, **does: str) -> None:
    """Stand-ins for Slurm's commands, in front of all others."""
    folder.mkdir()
    for name, text in {"sinfo": "true", "scancel": "true", **does}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(("scancel", "stays"), [("true", False), ("exit 1", True)])
def test_a_chain_that_breaks_off_is_taken_back_or_told_of(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scancel: str,
    stays: bool,
) -> None:
    """The controller goes away between two links, and scancel may not reach it either."""
    first_only = 'case "$*" in *afterany:70*) echo gone >&2; exit 1 ;; *) echo 70 ;; esac'
    slurm_that(tmp_path / "bin", monkeypatch, sbatch=first_only, scancel=scancel)
    assert launch.run(["slurm", str(config), *TWO, "--chain=2", "--no-check-data"]) == 2
    assert ("still in the queue: scancel 70" in capsys.readouterr().err) is stays
    assert (config.parent / "runs" / "one").exists() is stays  # a job in the queue needs its code


def test_a_chain_is_stopped_with_its_other_links(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file `stop` alone ends one link, and the next one goes on."""
    slurm_that(tmp_path / "bin", monkeypatch, sbatch='case "$*" in *afterany:70*) echo 71 ;; *) echo 70 ;; esac')
    assert launch.run(["slurm", str(config), *TWO, "--chain=2", "--no-check-data"]) == 0
    assert "stop all    scancel --state=PENDING 70 71; touch " in capsys.readouterr().out


def test_nothing_is_written_where_there_is_no_slurm(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert launch.run(["slurm", str(config), *TWO, "--no-check-data"]) == 2
    assert "there is no sinfo here: Slurm is not installed on this host" in capsys.readouterr().err
    assert not (config.parent / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--nodes=1", "--ranks-per-node=3", "--time=30"),
            "expected a multiple of 3 data ranks",
        ),
        (("--nodes=1", "--ranks-per-node=256", "--time=30"), "expected a multiple of 256 data ranks"),
        (("--nodes=1", "--gpus-per-node=1", "--time=soon"), "--time is 'soon', expected minutes"),
        (("--nodes=1", "--time=30"), "neither --gpus-per-node nor --ranks-per-node is given"),
        ((*TWO, "--chain=2", "--array=2"), "--chain 2 and --array 2 say the same"),
        ((*TWO, "--option=a\nrm -rf x"), "is not one, expected something such as --mem=0"),
        ((*TWO, "--", "run.dir=/dev/shm"), "lies in this host's memory (tmpfs)"),
        ((*TWO, "--", "run.dir=/tmp/08:30"), "run folder /tmp/08:30/one has a ':'"),
        (TWO, "data.train is not set"),
        ((*TWO, "--", "data.trian=x"), "unknown key data.trian"),
        (("--nodes=none",), "Invalid value for '--nodes'"),
    ],
)
def test_bad_input_is_one_sentence(
    config: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.run(["slurm", str(config), *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert out == ""
    assert not (config.parent / "runs").exists()


def test_a_config_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.run(["slurm", "nowhere.yaml", *TWO]) == 2
    assert capsys.readouterr().err.startswith("error: config nowhere.yaml is not a file")


def test_a_run_folder_in_the_home_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No shell replaces the ~ of run.dir=~/runs; doctor did, and the trainer made a folder of that name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert launch.run(["folder", str(config), "run.dir=~/runs"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/runs/one\n"
    assert launch.run(["folder", str(config), "run.dir=~nobody-of-that-name/runs"]) == 0


def test_a_dry_run_prints_the_script_and_writes_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.run(["slurm", str(config), *TWO, "--no-check-data", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash\n")
    assert not (config.parent / "runs").exists()


def test_what_slurm_says_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refusing = tmp_path / "sbatch"
    refusing.write_text("#!/bin/sh\necho 'sbatch: error: Invalid qos specification' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(InputError, match="did not take the job: Invalid qos specification"):
        slurm.submit("job.sbatch")
