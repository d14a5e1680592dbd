"""A run with the statistics of its own set: trained, evaluated, and not confused with another."""

import json
from pathlib import Path

import pytest

from dist_alexnet.data.measure import measure
from dist_alexnet.data.statistics import write_statistics
from dist_alexnet.errors import CheckpointError, ConfigError
from dist_alexnet.judging.judge import judge
from shards.index import read_index
from tests.ranks.harness import Case, losses, run_cases


@pytest.fixture(scope="module")
def statistics(config: Path) -> Path:
    index = read_index(str(config.parent / "shards" / "train.index.json"))
    facts, found = measure(index, 72, 1)
    assert (facts["images"], facts["undecoded"]) == (130, 1)
    return Path(write_statistics(str(config.parent / "statistics"), "train", facts, found))


def test_a_mean_image_goes_through_training_and_evaluation(config: Path, runs: Path, statistics: Path) -> None:
    """The run says what it was trained with; a checkpoint with a file that was changed is refused, not misread."""
    own = ("run.steps=3", "data.mean=image", f"data.statistics={statistics}", "data.augment.colour.deviation=0.1")
    run_cases(1, config, [Case("mean-image", own), Case("mean-default", ("run.steps=3",))])
    assert losses(runs / "mean-image") != losses(runs / "mean-default")
    val = str(config.parent / "shards" / "val.index.json")
    lines = [json.loads(line) for line in (runs / "mean-image" / "metrics.jsonl").read_text().splitlines()]
    trained = next(line["val/loss"] for line in lines if "val/loss" in line)
    assert judge([str(runs / "mean-image")], val).figures.loss == pytest.approx(trained, rel=1e-6)

    good = statistics.read_text()
    document = json.loads(good)
    document["standard_deviations"][0] += 1
    statistics.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="trained with other statistics"):
        judge([str(runs / "mean-image")], val)
    statistics.unlink()
    with pytest.raises(ConfigError, match="there is no statistics file"):
        judge([str(runs / "mean-image")], val)
    statistics.write_text(good)
    assert judge([str(runs / "mean-image")], val).figures.images == 37
