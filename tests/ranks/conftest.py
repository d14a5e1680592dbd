"""Shards and a config that the runs of a test file share: a name of a run is one of its file."""

from pathlib import Path

import pytest

from dist_alexnet.config import config_from, to_yaml
from tests.ranks.pictures import CLASSES, write_shards


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps of a narrow net, dropout, crop and mirror on, one torn picture, 6 passes over the set.

    The learning rate is a tenth of 2012's: at 0.01 the first steps of a net this small are chaotic, and rounding grows
    twentyfold a step, on any trainer.
    """
    folder = tmp_path_factory.mktemp("ranks")
    write_shards(folder / "shards")
    values = {
        "run": {"name": "reference", "dir": str(folder / "runs"), "seed": 5, "steps": 20, "deterministic": True},
        "data": {
            "train": str(folder / "shards" / "train.index.json"),
            "val": str(folder / "shards" / "val.index.json"),
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
        "checkpoint": {"every_epochs": None},
        "evaluate": {"every_epochs": None, "batch_size": 10},
        "log": {"every_steps": 1, "sample_keys": True, "pictures": False, "wandb": {"mode": "disabled"}},
    }
    path = folder / "config.yaml"
    path.write_text(to_yaml(config_from(values, "the test")))
    return path


@pytest.fixture(scope="module")
def runs(config: Path) -> Path:
    return config.parent / "runs"
