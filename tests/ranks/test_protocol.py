"""The protocol of 2012's best entry, small: pre-train with a sixth convolution on more classes, fine-tune, average."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dist_alexnet.__main__ import run
from dist_alexnet.config import config_from, to_yaml
from dist_alexnet.track.jsonl import read_lines
from shards.build import build_shards
from shards.sources.digits import DigitsSource
from shards.sources.source import SourceSample
from tests.ranks.harness import Case, run_cases

FIRST = 5  # of the digits that the fine-tuned nets tell apart
FEWER = 4  # one in so many pictures of theirs


@dataclass(frozen=True)
class Digits:
    """Digits from `first` on, one in `every` of their pictures."""

    first: int
    every: int

    @property
    def recipe(self) -> str:
        return f"digits from {self.first} on, one in {self.every}"

    @property
    def classes(self) -> tuple[str, ...]:
        return DigitsSource().classes[self.first :]

    def samples(self, split: str) -> list[SourceSample]:
        found = [one for one in DigitsSource().samples(split) if one.label >= self.first]
        return [replace(one, label=one.label - self.first) for one in found[:: self.every]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained net, one fine-tuned from it, and two of the other kind from nothing, as long as that one."""
    folder = tmp_path_factory.mktemp("protocol")
    build_shards(Digits(0, 1), "train", str(folder / "more"), samples_per_shard=1000)
    for split in ("train", "val"):
        build_shards(Digits(FIRST, FEWER), split, str(folder / "fewer"), samples_per_shard=100)
    values = {
        "run": {"name": "protocol", "dir": str(folder / "runs"), "steps": 12},
        "data": {
            "train": f"{folder}/fewer/train.index.json",
            "val": f"{folder}/fewer/val.index.json",
            "batch_size": 64,
            "workers": 0,
            "resize": 72,
            "image_size": 64,
            "mean": [33, 33, 33],
            "augment": {"mirror": False},
        },
        "network": {"name": "alexnet-2012", "num_classes": 5, "width": 0.125},
        "schedule": {"name": "constant"},
        "evaluate": {"every_epochs": None},
        "checkpoint": {"every_epochs": None},
        "log": {"wandb": {"mode": "disabled"}},
    }
    config = folder / "config.yaml"
    config.write_text(to_yaml(config_from(values, "the test")))
    more = (f"data.train={folder}/more/train.index.json", "data.val=null", "network.num_classes=10", "run.steps=140")
    tuned = ("network.name=net-146", f"finetune.from={folder}/runs/pretrain", "finetune.new_layers=[fc8]")
    cases = [
        Case("pretrain", ("network.name=net-146-2011", *more)),
        Case("finetune", tuned),
        *(Case(f"plain-{seed}", (f"run.seed={seed}",)) for seed in range(2)),
    ]
    run_cases(1, config, cases)
    return folder / "runs"


def test_what_was_pre_trained_is_ahead(runs: Path) -> None:
    top1 = {name: read_lines(runs / name / "metrics.jsonl")[-1]["val/top1"] for name in ("finetune", "plain-0")}
    assert top1["finetune"] > top1["plain-0"] + 0.3


def test_the_average_of_unlike_nets(runs: Path) -> None:
    """Two of one kind and the fine-tuned one of another, over ten views (mirrored digits cost all of them)."""
    nets, out = [str(runs / name) for name in ("plain-0", "plain-1", "finetune")], runs / "average.json"
    shards = f"{runs.parent}/fewer/val.index.json"
    assert run(["evaluate", *nets, "--shards", shards, "--views", "10", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["images"] == 125
    plain = [one["top1"] for one in found["inputs"][:2]]
    assert found["top1"] > max(plain) + 0.1, "the one that knows more tips the scales"
