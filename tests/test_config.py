"""Every setting has a meaning, every refusal is one sentence, and docs/config.md is what the code says.

`python -m tests.test_config` writes docs/config.md again.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import PydanticUndefined

from dist_alexnet.config import Batches, Config, batches_on, config_from, fields_of, load_config, to_yaml
from dist_alexnet.errors import ConfigError, LayoutError

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "config.md"
HOW = "make it again with: python -m tests.test_config"


def page() -> str:
    """docs/config.md: every key, its default and its meaning."""
    lines = [
        "# Every setting",
        "",
        "A config is a YAML file of these keys, in sections; what it leaves out has the default, the recipe of 2012.",
        "`key=value` after the config's name goes over it: `dist-alexnet train CONFIG data.batch_size=256`.",
        "`dist-alexnet config show CONFIG` prints what comes out. `null` takes a value away.",
    ]
    section = None
    for key, field in fields_of():
        if key.split(".")[0] != section:
            section = key.split(".")[0]
            lines += ["", f"## {section}", "", "| key | default | meaning |", "|---|---|---|"]
        meaning = re.sub(r"([<|])", r"\\\1", field.description or "")
        lines.append(f"| `{key}` | `{_default(field.default)}` | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value)


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(tmp_path: Path, text: str | bytes, *overrides: str) -> str:
    """The one line with which a config is refused, without its origin."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"config {path}")
    return message.removeprefix(f"config {path}").removeprefix(": ").strip()


def test_every_setting_has_a_meaning() -> None:
    fields = dict(fields_of())
    assert len(fields) > 40
    assert [key for key, field in fields.items() if not field.description] == []
    assert [key for key, field in fields.items() if field.default is PydanticUndefined] == []
    assert {"run.seed", "data.bad_samples.max_fraction", "log.wandb.entity", "precision"} <= fields.keys()


def test_the_page_of_settings_is_up_to_date() -> None:
    assert PAGE.is_file(), HOW
    assert PAGE.read_text() == page(), HOW


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_configs_that_ship_are_good(path: Path) -> None:
    load_config(path)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("data.batchsize", "data.batch_size"),
        ("data.imagesize", "data.image_size"),
        ("data.augment.mirrors", "data.augment.mirror"),
        ("data.bad_samples.max_part", "data.bad_samples.max_fraction"),
        ("log.wandb.projekt", "log.wandb.project"),
        ("run.batch_size", "data.batch_size"),
        ("data.lr", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("precison", "precision"),
        ("optimiser.lr", "optimizer"),
        ("chekpoint.keep", "checkpoint"),
        ("log.integral_keys", "log.sample_keys"),
        ("log.literal_keys", "log.sample_keys"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path, key: str, near: str) -> None:
    line = refusal(tmp_path, "{}", f"{key}=1")
    known = {name for name, _ in fields_of()}
    unknown = key if key.split(".")[0] in {name.split(".")[0] for name in known} else key.split(".")[0]
    assert line == f"unknown key {unknown}, did you mean {near}?"


@pytest.mark.parametrize("key", ["zzz", "log.interval", "run.constrained", "data.literals"])
def test_an_unknown_key_is_named_whole(tmp_path: Path, key: str) -> None:
    assert refusal(tmp_path, "{}", f"{key}=1").startswith(f"unknown key {key}")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["run.epochs=2", "run.steps=30"], ["run has epochs (2.0) and steps (30)", "expected one of them"]),
        (["run.epochs=0"], ["run.epochs is 0.0", "more than 0"]),
        (["run.epochs=-1"], ["run.epochs is -1.0", "more than 0"]),
        (["run.epochs=.inf"], ["run.epochs", "inf", "finite"]),
        (["run.steps=-1"], ["run.steps", "is -1", "greater than or equal to 0"]),
        (["run.name=a/b"], ["run.name", "'a/b'", "match"]),
        (["run.name=.."], ["run.name is '..'", "expected"]),
        (["run.seed=9223372036854775808"], ["run.seed", "9223372036854775808", "less than"]),
        (["data.lanes=3"], ["data.lanes is 3", "divisor of data.batch_size (128)"]),
        (["data.lanes=0"], ["data.lanes", "is 0", "greater than 0"]),
        (["data.lanes=many"], ["data.lanes", "'many'", "auto"]),
        (["data.image_size=257"], ["data.image_size is 257", "at most data.resize (256)"]),
        (["data.resize=200"], ["data.image_size is 224", "at most data.resize (200)"]),
        (["data.batch_size=64.5"], ["data.batch_size", "64.5", "integer"]),
        (["data.batch_size=0"], ["data.batch_size", "is 0", "greater than 0"]),
        (["data.mean=[1,2]"], ["data.mean.2", "required"]),
        (["data.mean=picture"], ["data.mean"]),
        (["data.mean=[1,2,x]"], ["data.mean.2", "'x'", "number"]),
        (["data.mean=image"], ["data.mean is image", "no mean image", "shards info INDEX --statistics"]),
        (["data.augment.crop=corner"], ["data.augment.crop", "'corner'", "'random', 'centre' or 'resized'"]),
        (["data.augment.crop_chunk=0"], ["data.augment.crop_chunk", "is 0", "greater than 0"]),
        (["data.augment.resized_scale=[0.5,0.2]"], ["data.augment.resized_scale is [0.5, 0.2]", "rising"]),
        (["data.augment.resized_scale=[0,1]"], ["data.augment.resized_scale is [0.0, 1.0]"]),
        (["data.augment.resized_scale=[0.1,2]"], ["data.augment.resized_scale is [0.1, 2.0]", "up to 1"]),
        (["data.augment.resized_ratio=[2,1]"], ["data.augment.resized_ratio is [2.0, 1.0]", "rising"]),
        (["data.augment.resized_ratio=[0,1]"], ["data.augment.resized_ratio is [0.0, 1.0]", "above 0"]),
        (["data.augment.colour.deviation=-0.1"], ["data.augment.colour.deviation", "is -0.1", "0"]),
        (["data.augment.colour.rule=paper"], ["data.augment.colour.rule", "'as-run' or 'as-written'"]),
        (["data.augment.colour.chunk=0"], ["data.augment.colour.chunk", "is 0", "greater than 0"]),
        (["data.augment.colour.until_epoch=-1"], ["data.augment.colour.until_epoch", "is -1", "0"]),
        (["data.workers=-1"], ["data.workers", "is -1", "0"]),
        (["data.bad_samples.max_fraction=2"], ["data.bad_samples.max_fraction", "is 2", "1"]),
        (["data=5"], ["section data is 5", "data.train"]),
        (["data="], ["section data is None", "data.train"]),
        (["parallel.columns=3"], ["parallel.columns", "is 3", "1 or 2"]),
        (["parallel.micro_batch=48"], ["parallel.micro_batch is 48", "divisor of data.batch_size (128)"]),
        (["parallel.micro_batch=64", "parallel.replicas=3"], ["parallel.micro_batch is 64", "parallel.replicas (3)"]),
        (["parallel.zero_stage=4"], ["parallel.zero_stage", "is 4", "0, 1, 2 or 3"]),
        (["optimizer.lr=nan"], ["optimizer.lr", "nan", "finite"]),
        (["optimizer.momentum=1"], ["optimizer.momentum", "is 1", "less than 1"]),
        (["optimizer.nesterov=true"], ["optimizer.nesterov", "sgd-2012"]),
        (["optimizer.name=sgd", "optimizer.nesterov=true", "optimizer.momentum=0"], ["optimizer.momentum is 0.0"]),
        (["schedule.at_epochs=[3,2]"], ["schedule.at_epochs is [3.0, 2.0]", "rising"]),
        (["schedule.at_epochs=[2,2]"], ["schedule.at_epochs is [2.0, 2.0]", "rising"]),
        (["schedule.at_epochs=[-1]"], ["schedule.at_epochs is [-1.0]", "from 0"]),
        (["optimizer.name=adam"], ["optimizer.name", "'adam'", "'lars' or 'adamw'"]),
        (["optimizer.trust=0.01"], ["optimizer.trust goes with name lars only", "found sgd-2012", "leave it out"]),
        (["optimizer.name=lars", "optimizer.eps=1e-6"], ["optimizer.eps goes with name adamw only", "found lars"]),
        (["optimizer.name=adamw", "optimizer.momentum=0.5"], ["optimizer.momentum goes with name sgd-2012 or sgd or"]),
        (["optimizer.name=adamw", "optimizer.betas=[0.9,1]"], ["optimizer.betas is [0.9, 1.0]", "less than 1"]),
        (["optimizer.name=lars", "parallel.zero_stage=3"], ["parallel.zero_stage is 3", "0, 1 or 2", "lars"]),
        (["schedule.name=manual"], ["schedule.phases is empty", "manual"]),
        (["schedule.name=cosine", "schedule.power=3"], ["schedule.power goes with name poly only", "found cosine"]),
        (["schedule.phases=[{epoch: 1, weights: 1}]"], ["schedule.phases goes with name manual only", "found steps"]),
        (["schedule.name=manual", "schedule.phases=[{epoch: 1}]"], ["schedule.phases", "epoch 1.0 without a rate"]),
        (
            ["schedule.name=manual", "schedule.phases=[{epoch: 2, weights: 1}, {epoch: 1, biases: 1}]"],
            ["schedule.phases begin at epochs [2.0, 1.0]", "in order"],
        ),
        (["schedule.name=manual", "schedule.phases=[{epoch: 1, rate: 1}]"], ["unknown key schedule.phases.0.rate"]),
        (["schedule.warmup_lr=0.1"], ["schedule.warmup_lr is 0.1 without warmup_epochs", "both or none"]),
        (["schedule.name=plateau"], ["data.val is not set", "plateau"]),
        (
            ["schedule.name=plateau", "data.val=v", "evaluate.every_epochs=null"],
            ["evaluate.every_epochs and evaluate.every_steps are null", "plateau"],
        ),
        (["network.width=0"], ["network.width", "is 0", "greater than 0"]),
        (["network.dropout=1"], ["network.dropout", "is 1", "less than 1"]),
        (["precision=fp8"], ["precision", "'fp8'", "'bf16' or 'fp16'"]),
        (["evaluate.every_epochs=0"], ["evaluate.every_epochs", "is 0", "greater than 0"]),
        (["log.wandb.mode=on"], ["log.wandb.mode", "True", "'offline'"]),
    ],
)
def test_a_refusal_names_key_value_and_what_was_expected(tmp_path: Path, overrides: list[str], says: list[str]) -> None:
    line = refusal(tmp_path, "{}", *overrides)
    assert all(part in line for part in says), line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- run\n- data\n", "holds a list, expected sections"),
        ("5", "cannot be read"),
        ("run: {name: [", "is not YAML"),
        ("run: {name: a}\nrun: {name: b}", "duplicate key run"),
        ("run: {name: '${nothing.there}'}", "cannot be read"),
        ("run: {\tname: a}\n\tdata: 3", "is not YAML"),
        (b"\xff\xfe\x00run", "cannot be read"),
        (b"run: {name: \x00}", "is not YAML"),
        ("5: 3", "keys should be strings"),
        ("word", "unknown key word"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path: Path, text: str | bytes, says: str) -> None:
    assert says in refusal(tmp_path, text)


@pytest.mark.parametrize(
    "override", ["=5", "data..x=1", "data[0]=3", "data.batch_size.x=3", "run.name=[", "run.name='"]
)
def test_odd_overrides_are_refused(tmp_path: Path, override: str) -> None:
    refusal(tmp_path, "{}", override)


@pytest.mark.parametrize("key", ["data.train", "data.val", "data.statistics"])
@pytest.mark.parametrize("url", ["https://me:s3cret@host/a.json", "https://host/a.json?sig=s3cret", "s3://b/a#s3cret"])
def test_a_secret_in_a_url_is_refused_and_not_repeated(tmp_path: Path, key: str, url: str) -> None:
    """A config goes to the run folder, into every checkpoint and to W&B."""
    says = refusal(tmp_path, "{}", f"{key}={url}")
    assert f"{key}: the URL " in says
    assert "s3cret" not in says


def test_an_override_without_a_value_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "{}")
    with pytest.raises(ConfigError, match=r"^override 'run\.steps' has no '=', expected key=value such as "):
        load_config(path, ["run.steps"])


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.yaml", tmp_path):
        with pytest.raises(ConfigError, match="is not a file: give the path"):
            load_config(path)


def test_an_empty_config_is_the_recipe_of_2012(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, ""))
    assert config == Config()
    assert (config.data.batch_size, config.data.resize, config.data.image_size) == (128, 256, 224)
    assert (config.optimizer.lr, config.optimizer.momentum, config.optimizer.weight_decay) == (0.01, 0.9, 0.0005)


def test_overrides_win_and_are_typed(tmp_path: Path) -> None:
    path = written(tmp_path, "run: {name: 12, epochs: 3}\ndata: {batch_size: 64, exclude: [a.tar]}\n")
    config = load_config(path, ["run.epochs=null", "run.steps=7", "data.exclude=[b.tar,c.tar]", "data.mean=[1,2.5,3]"])
    assert (config.run.name, config.run.epochs, config.run.steps) == ("12", None, 7)
    assert (config.data.batch_size, config.data.exclude, config.data.mean) == (64, ("b.tar", "c.tar"), (1, 2.5, 3))


@pytest.mark.parametrize(("written_as", "crop"), [("true", "random"), ("false", "centre"), ("resized", "resized")])
def test_a_crop_may_be_switched_on_and_off(tmp_path: Path, written_as: str, crop: str) -> None:
    config = load_config(written(tmp_path, "{}"), [f"data.augment.crop={written_as}"])
    assert config.data.augment.crop == crop


@pytest.mark.parametrize("mean", ["colour", "[1.5,2,3]"])
def test_a_mean_is_three_numbers_or_a_word(tmp_path: Path, mean: str) -> None:
    config = load_config(written(tmp_path, "{}"), [f"data.mean={mean}"])
    assert config.data.mean == ("colour" if mean == "colour" else (1.5, 2, 3))
    path = written(tmp_path, to_yaml(config))
    assert load_config(path) == config


@pytest.mark.parametrize(("batch_size", "lanes"), [(128, 64), (96, 32), (7, 1), (64, 64), (12, 4)])
def test_lanes_follow_the_batch(batch_size: int, lanes: int) -> None:
    assert Config.model_validate({"data": {"batch_size": batch_size}}).data.lane_count == lanes


@settings(max_examples=25, deadline=None)
@given(
    name=st.from_regex(r"[A-Za-z0-9_.-]{1,8}", fullmatch=True).filter(lambda name: name not in (".", "..")),
    lr=st.floats(0, 10),
    steps=st.none() | st.integers(0, 10**9),
    exclude=st.lists(st.from_regex(r"[a-z0-9:#' -]{1,6}", fullmatch=True), max_size=3),
)
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, lr: float, steps: int | None, exclude: list[str]
) -> None:
    values = {"run": {"name": name, "steps": steps}, "optimizer": {"lr": lr}, "data": {"exclude": exclude}}
    config = config_from(values, "test")
    path = tmp_path_factory.mktemp("round") / "c.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config


def on(world_size: int, **parallel: int) -> Batches:
    batch_size = parallel.pop("batch_size", 128)
    return batches_on(Config.model_validate({"data": {"batch_size": batch_size}, "parallel": parallel}), world_size)


def test_the_batch_on_a_world() -> None:
    assert on(1) == Batches(data_ranks=1, micro_batch=128, accumulation=1)
    assert on(4) == Batches(data_ranks=4, micro_batch=32, accumulation=1)
    assert on(4, columns=2, replicas=2) == Batches(data_ranks=1, micro_batch=128, accumulation=1)
    assert on(8, columns=2, replicas=2, micro_batch=16) == Batches(data_ranks=2, micro_batch=16, accumulation=4)
    assert on(3, batch_size=96) == Batches(data_ranks=3, micro_batch=32, accumulation=1)


@pytest.mark.parametrize(
    ("world_size", "parallel", "says"),
    [
        (3, {"columns": 2}, ["world size is 3", "parallel.columns (2) x parallel.replicas (1) = 2"]),
        (6, {"columns": 2, "replicas": 2}, ["world size is 6", "= 4"]),
        (3, {}, ["data.batch_size is 128", "3 data ranks"]),
        (6, {"replicas": 3}, ["data.batch_size is 128", "2 data ranks x 3 replicas"]),
        (4, {"micro_batch": 64}, ["data.batch_size is 128", "4 data ranks x parallel.micro_batch (64)"]),
    ],
)
def test_a_batch_that_does_not_come_out_even(world_size: int, parallel: dict[str, int], says: list[str]) -> None:
    with pytest.raises(LayoutError) as caught:
        on(world_size, **parallel)
    assert all(part in str(caught.value) for part in says)
    assert "\n" not in str(caught.value)


def test_shared_decoding_needs_a_batch_that_columns_divide() -> None:
    """Where columns share nothing, nothing has to divide."""

    def cut(world_size: int, share_decoding: bool = True, **parallel: int) -> Batches:
        data = {"batch_size": 24, "share_decoding": share_decoding}
        return batches_on(Config.model_validate({"data": data, "parallel": parallel}), world_size)

    assert cut(2, columns=2, micro_batch=6).accumulation == 4
    assert cut(1, micro_batch=3).accumulation == 8
    assert cut(2, columns=2, micro_batch=3, share_decoding=False).accumulation == 8
    for parallel in ({"micro_batch": 3}, {"replicas": 2, "micro_batch": 6}):
        with pytest.raises(
            LayoutError, match=r"^data\.share_decoding is true, but a replica's 3 images .* no multiple of"
        ):
            cut(2 * parallel.get("replicas", 1), columns=2, **parallel)


if __name__ == "__main__":
    PAGE.write_text(page())
