"""What the pictures of one evaluation cost a run: net 145 at its full width, 224 pixels, on one rank.

python -m tests.bench.bench_pictures DIGITS     (made by `dist-alexnet shards build bundled digits --to DIGITS`)
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dist_alexnet.__main__ import leave
from dist_alexnet.config import config_from
from dist_alexnet.train import train
from dist_alexnet.training_pictures import TrainingPictures

STEPS = 3  # and an evaluation after each


def main(digits: Path) -> None:
    spent_s = []
    draw = TrainingPictures.draw

    def timed(pictures: TrainingPictures, *arguments: Any, **others: Any) -> None:
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        draw(pictures, *arguments, **others)
        spent_s.append((time.monotonic() - began_s, time.process_time() - began_cpu_s))

    with tempfile.TemporaryDirectory() as folder, patch.object(TrainingPictures, "draw", timed):
        values: dict[str, Any] = {
            "run": {"dir": folder, "steps": STEPS},
            "data": {"train": str(digits / "train.index.json"), "batch_size": 32, "workers": 0},
            "network": {"num_classes": 10},
            "evaluate": {"every_steps": 1, "every_epochs": None},
            "checkpoint": {"every_epochs": None},
            "log": {"wandb": {"mode": "disabled"}},
        }
        values["data"]["val"] = str(digits / "val.index.json")
        with patch("dist_alexnet.train._Run._evaluate", return_value=0.0), patch("dist_alexnet.train._Run._save"):
            train(config_from(values, "the benchmark"))
        files = sorted((Path(folder) / "alexnet" / "pictures").iterdir())
        size = sum(file.stat().st_size for file in files) / STEPS
    for number, (wall_s, cpu_s) in enumerate(spent_s, 1):
        print(f"evaluation {number}: {wall_s:.2f} s, of which {cpu_s:.2f} s of the processor")
    print(f"{len(files) // STEPS} files an evaluation, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
