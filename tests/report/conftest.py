"""A run with a restart, a picture that does not decode and names that mean harm; and a browser to look at its page."""

import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from dist_alexnet.config import config_from, to_yaml
from dist_alexnet.report import story
from dist_alexnet.report.look import Looked, look
from dist_alexnet.report.story import report
from shards.build import build_shards
from shards.sources.source import SourceSample
from tests.ranks.harness import Case, run_cases
from tests.report.browser import PROGRAMS, Browser

PACKAGES = ("chromium", "chromium-driver")
NAMES = (
    "<script>document.title = 'broken'</script>",
    '"><img src=http://elsewhere.invalid/a.png onerror="document.title=1">',
    "$\\frac{a}{0}$ &amp; {{ 7 * 7 }}",
    "a-very-long-name-without-a-place-to-break-" * 4,
    "雪 ثلج",
)
TORN = 5  # of the training set


@dataclass(frozen=True)
class Named:
    """Pictures of 64 x 64 pixels, a hue a class, whose classes and keys have the names above."""

    torn: int | None = None

    @property
    def recipe(self) -> str:
        return f"named, torn {self.torn}"

    @property
    def classes(self) -> tuple[str, ...]:
        return NAMES

    def samples(self, split: str) -> list[SourceSample]:
        count = {"train": 60, "val": 40}[split]
        return [SourceSample(f"{split}-<b>&{i:03d}", i % 5, lambda i=i: self.picture(i)) for i in range(count)]

    def picture(self, number: int) -> bytes:
        small = np.random.default_rng(number).integers(0, 256, (8, 8, 3)) // 2
        small[:, :, number % 3] += 25 * (number % 5)
        out = io.BytesIO()
        Image.fromarray(small.astype(np.uint8)).resize((64, 64)).save(out, "JPEG")
        return out.getvalue()[: 400 if number == self.torn else None]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`page`: four steps on two columns, in two starts of which the second took over at step 2; `bare`: two steps
    without a validation set or a checkpoint.
    """
    folder = tmp_path_factory.mktemp("report")
    build_shards(Named(TORN), "train", str(folder / "shards"), samples_per_shard=25)
    build_shards(Named(), "val", str(folder / "shards"), samples_per_shard=25)
    values = {
        "run": {"dir": str(folder / "runs"), "seed": 3},
        "data": {
            "train": str(folder / "shards" / "train.index.json"),
            "val": str(folder / "shards" / "val.index.json"),
            "batch_size": 20,
            "workers": 0,
            "resize": 64,
            "image_size": 64,
            "bad_samples": {"max_fraction": 0.5},
        },
        "network": {"num_classes": 5, "width": 0.125},
        "optimizer": {"lr": 0.001},
        "evaluate": {"every_epochs": None, "batch_size": 20},
        "log": {"every_steps": 1, "pictures": False, "wandb": {"mode": "disabled"}},
    }
    config = folder / "config.yaml"
    config.write_text(to_yaml(config_from(values, "the test")))
    steps = [Case("page", (f"run.steps={steps}",)) for steps in (2, 4)]
    run_cases(1, config, [*steps, Case("bare", ("run.steps=2", "data.val=null"))])
    shutil.rmtree(folder / "runs" / "bare" / "checkpoints")
    with (folder / "runs" / "page" / "attempts.jsonl").open("a") as file:
        cause = "<img src=x onerror=\"document.title='broken'\"> " + "no-space-to-break" * 20
        start = {"generation": 3, "event": "start", "step": 4, "from": 2, "time_s": 1e9, "layout": {}, "hosts": ["<b>"]}
        end = {"generation": 3, "event": "end", "step": 4, "time_s": 1e9 + 61, "cause": cause, "code": 1}
        file.write("".join(json.dumps(line) + "\n" for line in (start, end)))
    return folder / "runs"


@pytest.fixture(scope="session")
def looked() -> list[Looked]:
    """What the network saw for `page`: of the validation set and of the training set."""
    return []


@pytest.fixture(scope="session")
def page(runs: Path, looked: list[Looked]) -> Path:
    def watched(*arguments: Any) -> Looked:
        looked.append(look(*arguments))
        return looked[-1]

    with patch.object(story, "look", watched), patch.dict(os.environ):  # a session's environment is every test's
        return report(runs / "page")


@pytest.fixture(scope="session")
def bare(runs: Path) -> Path:
    with patch.dict(os.environ):
        return report(runs / "bare")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    _install()
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def _install() -> None:
    """Chromium and its driver, where they are missing; skipped, and said so, where they cannot be had."""
    if all(shutil.which(program) for program in PROGRAMS):
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        pytest.skip(f"there is no Chromium here, and no way to install {' '.join(PACKAGES)} (apt-get, root)")
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(["apt-get", *words], env=environment, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"there is no Chromium here, and apt-get {words[0]} failed: {done.stderr.strip()[-300:]}")
