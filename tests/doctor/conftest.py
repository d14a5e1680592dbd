"""Small shard sets, sound and unsound, and a config over them."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_alexnet.config import config_from, to_yaml
from shards.indexing import index_shards
from tests.shards.pictures import members, write_tar

SHARDS, SAMPLES = 4, 8  # a shard


def write_set(folder: Path, torn: int = 0) -> Path:
    """train and val; the first pictures of so many training shards do not decode. Returns the folder."""
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        content = list(members(SAMPLES, first=SAMPLES * shard))
        if shard >= SHARDS - torn:
            content[0] = (content[0][0], content[0][1][:200])
        write_tar(folder / f"train-{shard}.tar", content)
    index_shards(f"{folder}/train-{{0..{SHARDS - 1}}}.tar")
    write_tar(folder / "val-0.tar", members(SAMPLES, first=100))
    index_shards(f"{folder}/val-0.tar")
    return folder


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a narrow net on 32 noise pictures; run.dir is relative, `runs` in the current folder."""
    folder = tmp_path_factory.mktemp("doctor")
    sound = write_set(folder / "sound")
    values = {
        "run": {"name": "examined", "dir": "runs", "steps": 2},
        "data": {
            "train": f"{sound}/train.index.json",
            "val": f"{sound}/val.index.json",
            "batch_size": 8,
            "workers": 1,
            "image_size": 64,
            "resize": 64,
        },
        "network": {"num_classes": 5, "width": 0.125},
        "log": {"wandb": {"mode": "disabled"}},
    }
    path = folder / "config.yaml"
    path.write_text(to_yaml(config_from(values, "the test")))
    return path


@pytest.fixture(scope="session")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of 64 KiB with little room for files."""
    folder = tmp_path_factory.mktemp("small-disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=8", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root, where it may mount, can make a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
