"""One cluster for all tests of this folder, from Debian's packages; skipped, and said so, where it cannot be had."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_alexnet.config import config_from, to_yaml
from tests.ranks.pictures import CLASSES, write_shards
from tests.slurm.harness import SCRIPT, STEPS, USER, Cluster, Job

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter", "runuser")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a Slurm cluster of its own needs Linux and root")
    _install()
    allowed = subprocess.run(["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "true"], check=False)
    if allowed.returncode:
        pytest.skip("a Slurm cluster of its own needs namespaces (CAP_SYS_ADMIN, CAP_NET_ADMIN)")
    state = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short path: it holds sockets
    folder = Path(tempfile.mkdtemp(prefix="slurm-user-"))
    user = pwd.getpwnam(USER)
    os.chown(folder, user.pw_uid, user.pw_gid)
    cluster = Cluster(state, folder)
    # the cluster's processes are nobody's children: where this one is killed, they must end, too
    outliving = 'while kill -0 "$1" 2>/dev/null; do sleep 1; done; CLUSTER_DIR=$3 "$2" down; rm -rf "$3" "$4"'
    words = ["bash", "-c", outliving, "watch", str(os.getpid()), str(SCRIPT), str(state), str(folder)]
    watch = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        cluster.operate("up", "3", timeout_s=120)
        yield cluster
    finally:
        cluster.operate("down", timeout_s=120)
        watch.kill()
        watch.wait()
        shutil.rmtree(state, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def config(cluster: Cluster) -> Path:
    """120 steps of a narrow net, saved every 10 steps, on the pictures of tests/ranks."""
    folder = cluster.folder
    write_shards(folder / "shards")
    values = {
        "run": {"name": "none", "dir": str(folder / "runs"), "seed": 5, "steps": STEPS, "deterministic": True},
        "data": {
            "train": str(folder / "shards" / "train.index.json"),
            "batch_size": 24,
            "workers": 0,
            "resize": 72,
            "image_size": 64,
            "window_shards": 2,
            "bad_samples": {"max_fraction": 0.2},
        },
        "network": {"num_classes": CLASSES, "width": 0.125},
        "optimizer": {"lr": 0.001},
        "schedule": {"name": "steps", "at_epochs": [2.0]},
        "checkpoint": {"every_epochs": None, "every_steps": 10},
        "log": {"every_steps": 1, "sample_keys": True, "pictures": False, "wandb": {"mode": "disabled"}},
    }
    path = folder / "config.yaml"
    path.write_text(to_yaml(config_from(values, "the test")))
    return path


@pytest.fixture(scope="session")
def limited(cluster: Cluster, config: Path) -> Job:
    """A job that does not end within its minute, nor within the next: submitted first, looked at last."""
    options = ("--nodes=1", "--ranks-per-node=1", "--time=1", "--style=srun", "--max-requeues=1", "--no-check-data")
    endless = ("run.steps=100000", "checkpoint.every_steps=100000")
    return cluster.launch(config, "limited", *options, "--option=--nodelist=n1", overrides=endless)


def _install() -> None:
    """Slurm, where it is missing. Its state lies where the tests say: nothing in /etc is changed by them."""
    if all(shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") for program in PROGRAMS):
        return
    if shutil.which("apt-get") is None:
        pytest.skip(f"there is no Slurm here, and no apt-get to install {' '.join(PACKAGES)} with")
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(["apt-get", *words], env=environment, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"there is no Slurm here, and apt-get {words[0]} failed: {done.stderr.strip()[-300:]}")
