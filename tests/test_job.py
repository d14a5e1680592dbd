"""What a config means with its data, before a process group is made."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from dist_alexnet.config import Config
from dist_alexnet.data.measure import measure
from dist_alexnet.data.statistics import write_statistics
from dist_alexnet.errors import ConfigError, LayoutError
from dist_alexnet.job import Job, describe, make_job
from dist_alexnet.run_folder import check_identity
from shards.build import build_shards
from shards.errors import InputError
from shards.index import read_index
from shards.sources.folder import FolderSource
from tests.shards.pictures import NoiseSource, jpeg

IMAGES = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures of 3 classes in 4 shards, and another set of 12."""
    folder = tmp_path_factory.mktemp("job")
    build_shards(NoiseSource(IMAGES), "train", str(folder), samples_per_shard=10)
    build_shards(NoiseSource(12), "val", str(folder), samples_per_shard=10)
    return folder


def config(folder: Path, **sections: dict[str, Any]) -> Config:
    values: dict[str, dict[str, Any]] = {
        "run": {"epochs": 3},
        "data": {"train": f"{folder}/train.index.json", "batch_size": 8, "image_size": 64, "resize": 72},
        "network": {"width": 0.25, "num_classes": 10},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Config.model_validate(values)


@pytest.mark.parametrize(
    ("run", "batch_size", "steps"),
    [
        ({"epochs": 3}, 8, 15),
        ({"epochs": 3}, 16, 7),  # the tail is left out
        ({"epochs": 0.5}, 8, 2),
        ({"epochs": None}, 8, 450),  # 90 epochs, as in 2012
        ({"epochs": None, "steps": 0}, 8, 0),
        ({"epochs": None, "steps": 77}, 8, 77),
    ],
)
def test_length(data: Path, run: dict[str, Any], batch_size: int, steps: int) -> None:
    assert make_job(config(data, run=run, data={"batch_size": batch_size}), 1).total_steps == steps


def test_layout_and_batches(data: Path) -> None:
    job = make_job(config(data, parallel={"columns": 2, "replicas": 2, "micro_batch": 2}), 8)
    assert (job.layout.data, job.layout.replicas, job.layout.columns) == (2, 2, 2)
    assert (job.batches.micro_batch, job.batches.accumulation) == (2, 2)
    assert job.val is None
    assert len(job.train) == IMAGES


def refused(error: type[InputError], says: str, values: Config, world_size: int = 1) -> None:
    with pytest.raises(error, match=says) as caught:
        make_job(values, world_size)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_refusals(data: Path, tmp_path: Path) -> None:
    refused(ConfigError, r"^data\.train is not set", config(data, data={"train": None}))
    refused(InputError, "there is no index", config(data, data={"train": f"{tmp_path}/train.index.json"}))
    refused(ConfigError, "have 3 classes, network.num_classes is 2", config(data, network={"num_classes": 2}))
    refused(
        ConfigError,
        r"the training set has 40 images, expected at least data\.batch_size \(64\)",
        config(data, data={"batch_size": 64}),
    )
    refused(InputError, "there is no shard 'train-9.tar'", config(data, data={"exclude": ["train-9.tar"]}))
    refused(ConfigError, "network.width is 0.3", config(data, network={"width": 0.3}))
    refused(ConfigError, "network.name is 'alexnet'", config(data, network={"name": "alexnet"}))
    refused(LayoutError, "world size is 3", config(data, parallel={"columns": 2}), 3)
    few = config(data, parallel={"replicas": 4}, network={"num_classes": 3})
    refused(LayoutError, r"fc8\.weight has 3 rows, expected at least one for each of 4 ranks", few, 4)


def test_a_validation_set_with_more_classes_is_refused(data: Path, tmp_path: Path) -> None:
    pictures_of(tmp_path, "ant", "bee")
    sets = {"train": f"{tmp_path}/train.index.json", "val": f"{data}/val.index.json"}
    job = make_job(config(data, data=sets, network={"num_classes": 3}), 1)
    assert job.val is not None
    assert (job.train.num_classes, job.val.num_classes) == (2, 3)
    refused(ConfigError, "the val shards in .* have 3 classes", config(data, data=sets, network={"num_classes": 2}))


def test_a_class_has_the_same_number_in_both_sets(data: Path, tmp_path: Path) -> None:
    """A folder that is missing from one of them would move the numbers of all behind it."""
    pictures_of(tmp_path, "bee", "cat")
    sets = {"train": f"{data}/train.index.json", "val": f"{tmp_path}/train.index.json"}
    refused(ConfigError, "class 0 is 'ant' in data.train and 'bee' in data.val", config(data, data=sets))


def pictures_of(folder: Path, *classes: str) -> None:
    """A training set of 8 pictures a class."""
    for name in classes:
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(8):
            (folder / "pictures" / name / f"{number}.jpg").write_bytes(jpeg(number))
    build_shards(FolderSource(str(folder / "pictures")), "train", str(folder))


def identity(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    job: Job = make_job(config(folder, **sections), 1)
    values: dict[str, Any] = json.loads(json.dumps(job.identity))
    assert values == job.identity  # so that what is read back compares equal
    return values


SAME: list[dict[str, Any]] = [
    {"parallel": {"columns": 2}},
    {"parallel": {"micro_batch": 2}},
    {"parallel": {"zero_stage": 3}},
    {"data": {"workers": 7}},
    {"data": {"share_decoding": True}},
    {"data": {"statistics": "unused/train.statistics.json"}},
    {"data": {"augment": {"crop": True}}},
    {"data": {"lanes": 8}},  # what auto means for a batch of 8
    {"run": {"epochs": 9}},
    {"run": {"name": "other", "deterministic": True}},
    {"precision": "bf16"},
    {"checkpoint": {"keep": 9}, "log": {"every_steps": 1}, "evaluate": {"every_steps": 3}},
    {"data": {"bad_samples": {"max_fraction": 0.5}}},
]


@pytest.mark.parametrize("sections", SAME, ids=str)
def test_any_layout_is_the_same_run(data: Path, sections: dict[str, Any]) -> None:
    sections = dict(sections)
    precision = sections.pop("precision", "auto")
    values = config(data, **sections).model_copy(update={"precision": precision})
    world_size = 4
    check_identity(identity(data), make_job(values, world_size).identity, "here")


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("run.seed", {"run": {"seed": 1}}),
        ("data.batch_size", {"data": {"batch_size": 4}}),
        ("data.lanes", {"data": {"lanes": 4}}),
        ("data.window_shards", {"data": {"window_shards": 2}}),
        ("data.digest", {"data": {"exclude": ["train-000001.tar"]}}),
        ("data.augment", {"data": {"augment": {"mirror": False}}}),
        ("data.augment", {"data": {"augment": {"crop": "resized"}}}),
        ("data.augment", {"data": {"augment": {"crop_chunk": 32}}}),
        ("data.augment", {"data": {"augment": {"colour": {"deviation": 0.1}}}}),
        ("data.statistics", {"data": {"augment": {"colour": {"deviation": 0.1}}}}),
        ("data.mean", {"data": {"mean": "colour"}}),
        ("data.image_size", {"data": {"image_size": 65}}),
        ("data.resize", {"data": {"resize": 73}}),
        ("data.mean", {"data": {"mean": [1, 2, 3]}}),
        ("network.width", {"network": {"width": 0.5}}),
        ("network.5.conv2", {"network": {"name": "alexnet-2012-paper"}}),
        ("network.2.lrn", {"network": {"name": "alexnet-2012-paper"}}),
        ("optimizer", {"optimizer": {"lr": 0.02}}),
        ("optimizer", {"optimizer": {"name": "lars"}}),
        ("optimizer", {"optimizer": {"name": "adamw", "eps": 1e-6}}),
        ("schedule", {"schedule": {"at_epochs": [1]}}),
        ("schedule", {"schedule": {"warmup_epochs": 1}}),
        ("schedule", {"schedule": {"name": "manual", "phases": [{"epoch": 1, "layers": ["fc8"], "weights": 0}]}}),
    ],
)
def test_what_makes_another_run(data: Path, key: str, sections: dict[str, Any]) -> None:
    ours, other = identity(data), identity(data, **sections)
    assert key in {name for name in ours if ours[name] != other.get(name)}


def test_the_length_is_part_of_a_run_whose_rates_hang_on_it(data: Path) -> None:
    """Only there: 2012's steps may be made longer, a cosine would be another one."""
    for name, hangs in (("steps", False), ("constant", False), ("cosine", True), ("poly", True), ("dexp", True)):
        ours, longer = (
            identity(data, schedule={"name": name}, run={"epochs": epochs, "steps": None}) for epochs in (2, 3)
        )
        assert {key for key in ours if ours[key] != longer[key]} == ({"run.length"} if hangs else set())
    in_steps = identity(data, schedule={"name": "poly"}, run={"epochs": None, "steps": 3})
    assert in_steps["run.length"] == "3/5"  # 3 steps of 8 of 40 images


def test_evaluations_are_part_of_a_run_whose_rates_hang_on_them(data: Path) -> None:
    sets = {"val": f"{data}/val.index.json"}
    ours, other = (
        identity(
            data, schedule={"name": "plateau"}, evaluate={"every_steps": steps}, data=sets, network={"num_classes": 3}
        )
        for steps in (2, 3)
    )
    assert {key for key in ours if ours[key] != other[key]} == {"evaluate.due"}
    assert "data.val" in ours


def test_settings_of_other_rules_are_no_part_of_a_run(data: Path) -> None:
    assert identity(data)["optimizer"].keys() == {"name", "lr", "momentum", "weight_decay", "clip_norm"}
    assert identity(data)["schedule"].keys() == {"name", "at_epochs", "factor", "warmup_epochs", "warmup_lr"}


def test_a_phase_for_a_layer_that_is_not_there_is_refused(data: Path) -> None:
    phases = [{"epoch": 1, "layers": ["conv1", "conv9"], "weights": 0}]
    refused(
        ConfigError,
        "schedule.phases names layer conv9, expected one of conv1, ",
        config(data, schedule={"name": "manual", "phases": phases}),
    )


def test_the_contents_of_statistics_are_part_of_the_run(data: Path, tmp_path: Path) -> None:
    """Where they are used, and not the place where they lie."""
    facts, statistics = measure(read_index(f"{data}/train.index.json"), 72, 1)
    one = write_statistics(str(tmp_path / "one"), "train", facts, statistics)
    same = write_statistics(str(tmp_path / "same"), "train", facts, statistics)
    redder = dataclasses.replace(statistics, mean=(255.0, *statistics.mean[1:]))
    other = write_statistics(str(tmp_path / "other"), "train", facts, redder)
    for used, differs in (({"mean": "colour"}, True), ({"mean": "image"}, False), ({}, False)):
        ours = identity(data, data={"statistics": one, **used})
        assert identity(data, data={"statistics": same, **used}) == ours
        changed = identity(data, data={"statistics": other, **used})
        assert {name for name in ours if ours[name] != changed[name]} == ({"data.statistics"} if differs else set())
        assert (ours["data.statistics"] is None) == (not used)


def test_statistics_that_cannot_be_used_are_refused(data: Path, tmp_path: Path) -> None:
    facts, statistics = measure(read_index(f"{data}/train.index.json"), 64, 1)
    url = write_statistics(str(tmp_path), "train", facts, statistics)
    refused(ConfigError, "at 64 pixels, data.resize is 72", config(data, data={"mean": "image", "statistics": url}))
    lost = {"mean": "colour", "statistics": f"{tmp_path}/val.statistics.json"}
    refused(ConfigError, "there is no statistics file", config(data, data=lost))


def test_layers_of_a_network_file_are_part_of_the_run(data: Path, tmp_path: Path) -> None:
    """The name of a file does not say what is in it."""
    path = tmp_path / "mine.yaml"
    text = (Path(__file__).parent.parent / "dist_alexnet/network/presets/alexnet-2012.yaml").read_text()
    path.write_text(text)
    ours = identity(data, network={"name": str(path)})
    path.write_text(text.replace("init_sd: 0.03", "init_sd: 0.02"))
    other = identity(data, network={"name": str(path)})
    assert {name for name in ours if ours[name] != other[name]} == {
        "network.10.conv3",
        "network.12.conv4",
        "network.14.conv5",
    }
    path.write_text(text)
    assert identity(data, network={"name": str(path.rename(tmp_path / "moved.yaml"))}) == ours


@pytest.mark.parametrize(("epochs", "steps"), [(0.29, 1), (1, 5), (2.2, 11), (0.1, 0), (4.6, 23)])
def test_epochs_are_taken_as_written(data: Path, epochs: float, steps: int) -> None:
    """40 images in batches of 8; 2.2 and 4.6 are not exact in binary, and 4.6 * 40 / 8 is just below 23 there."""
    assert make_job(config(data, run={"epochs": epochs}), 1).total_steps == steps


def test_a_dry_run_says_what_it_would_do(data: Path) -> None:
    lines = describe(config(data, data={"val": f"{data}/val.index.json"})).splitlines()
    said = {line.split()[0]: line for line in lines}
    assert "15 steps of 8 images" in said["run"]
    assert "40 images in 4 shards, 3 classes" in said["train"]
    assert "12 images" in said["val"]
    assert said["decoder"].split()[1] in ("pillow", "simplejpeg", "region")
    assert "1 data x 1 replicas x 1 columns, ZeRO stage 0" in said["layout"]
    assert json.loads(said["deepspeed"].split(maxsplit=1)[1])["gradient_clipping"] == 0


def test_any_decoder_continues_a_run(data: Path) -> None:
    """They give the same pixels: a host without a compiler may go on with the run of one that has it."""
    auto, pillow = (make_job(config(data, data={"decoder": name}), 1).identity for name in ("auto", "pillow"))
    assert auto == pillow
    assert "decoder" in auto


def test_the_gpus_decoder_is_another_run(data: Path) -> None:
    auto, nvjpeg = (make_job(config(data, data={"decoder": name}), 1).identity for name in ("auto", "nvjpeg"))
    assert nvjpeg == auto | {"decoder": f"nvjpeg+{auto['decoder']}"}
    assert "decoder    nvjpeg if every rank has it\n" in describe(config(data, data={"decoder": "nvjpeg"}))


def test_a_decoder_that_is_not_there_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_alexnet.data.decode._fast", lambda decoder: None)
    make_job(config(data), 1)
    with pytest.raises(ConfigError, match=r"data\.decoder is region"):
        make_job(config(data, data={"decoder": "region"}), 1)
