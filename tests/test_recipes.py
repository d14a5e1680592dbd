"""The recipes in configs/ load, fit their networks and layouts, and set what their sources set. Needs no data."""

import itertools
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from dist_alexnet.config import Config, batches_on, load_config
from dist_alexnet.errors import CheckpointError
from dist_alexnet.finetune import check_fits
from dist_alexnet.job import check_phases, network_of
from dist_alexnet.network.batch_norm import parts_on
from dist_alexnet.network.build import check_layout
from dist_alexnet.network.spec import load_spec
from dist_alexnet.optim.schedules import Rates, Role
from dist_alexnet.parallel.layout import Layout

CONFIGS = Path(__file__).parent.parent / "configs"
NO_RECIPES = {"drill", "photographs", "quickstart"}
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in NO_RECIPES)
IMAGENET_IMAGES = 1_281_167


def recipe(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml")


def header(name: str) -> str:
    """The comment at the top, its lines joined."""
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def rate(config: Config, epoch: float, layer: str = "fc6", role: Role = "weight") -> float:
    """The rate of a layer at an epoch; a bias's multiplier is 2 in all networks used here."""
    assert config.run.epochs is not None
    length = Fraction(str(config.run.epochs))
    rates = Rates(config.schedule, config.optimizer.lr, Fraction(str(epoch)), length)
    return rates.of(layer, role, 2.0 if role == "bias" else 1.0)


def values(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json")


def test_each_recipe_is_listed_for_the_user() -> None:
    listed = set(re.findall(r"`configs/([\w-]+)\.yaml`", (CONFIGS.parent / "docs" / "recipes.md").read_text()))
    assert set(NAMES) == listed - NO_RECIPES


@pytest.mark.parametrize("name", NAMES)
def test_loads_and_fits_its_network(name: str) -> None:
    config = recipe(name)
    assert config.run.name == name
    spec = load_spec(config.network.name)
    network = network_of(config, spec)
    assert config.data.image_size == spec.image_size, "initial deviations are meant for that size"
    layout = Layout(1, config.parallel.replicas, config.parallel.columns)
    check_layout(network, layout)
    check_phases(config, network)


@pytest.mark.parametrize("name", NAMES)
def test_header(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    for word in ("paper", "command", "hardware", "hours", "expect"):
        assert len(re.findall(rf"^# {word}  ", text, re.MULTILINE)) == 1, word
    assert f"configs/{name}.yaml" in header(name)
    assert "not measured" in header(name)
    assert re.search(r"view|centre crop|test set", header(name)), "how the figure was measured"
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.parametrize("name", NAMES)
def test_the_command_has_the_ranks_that_the_layout_needs(name: str) -> None:
    config = recipe(name)
    found = re.search(r"torchrun --nproc-per-node (\d+)", header(name))
    ranks = int(found[1]) if found else 1
    batches = batches_on(config, ranks)
    assert batches.data_ranks * config.parallel.group_ranks == ranks


@pytest.mark.parametrize("name", [name for name in NAMES if "lars" in name or "layout" in name])
@pytest.mark.parametrize("nodes", [1, 2, 4, 8, 16, 32, 64])
def test_runs_on_1_to_64_nodes_of_8(name: str, nodes: int) -> None:
    config = recipe(name)
    batches = batches_on(config, 8 * nodes)
    layout = Layout(batches.data_ranks, config.parallel.replicas, config.parallel.columns)
    assert layout.world_size == 8 * nodes
    parts_on(layout, config.data.batch_size, config.batch_norm_parts, batches.accumulation)


def test_the_rates_of_net_145() -> None:
    """As its log has them: weights, conv1's weights, conv1's biases; the other biases stay at 0.02."""
    config = recipe("imagenet-2012")
    for epoch, others, first, first_biases in (
        (0, 0.01, 0.01, 0.02),
        (24.99, 0.01, 0.01, 0.02),
        (25, 0.001, 0.001, 0.02),
        (51, 0.0001, 0.0001, 0.02),
        (67, 0.0001, 0.00001, 0.02),
        (72, 0.0001, 0, 0),
        (79, 0.00001, 0, 0),
        (90.9, 0.00001, 0, 0),
    ):
        assert rate(config, epoch) == pytest.approx(others), epoch
        assert rate(config, epoch, "conv1") == pytest.approx(first), epoch
        assert rate(config, epoch, "conv1", "bias") == pytest.approx(first_biases), epoch
        assert rate(config, epoch, "fc6", "bias") == 0.02, epoch
    colour = config.data.augment.colour
    assert (colour.deviation, colour.rule, colour.until_epoch) == (0.1, "as-run", 67)
    assert (config.run.epochs, config.data.batch_size, config.parallel.columns) == (91, 128, 2)
    assert (config.optimizer.name, config.optimizer.momentum, config.optimizer.weight_decay) == (
        "sgd-2012", 0.9, 0.0005,
    )  # fmt: skip


def test_the_rates_of_the_fine_tuned_net() -> None:
    """As its log has them: weights, conv1's, fc8's; biases 0.02 but those of conv1."""
    config = recipe("imagenet-2012-conv6-finetune")
    for epoch, others, first, last in (
        (0, 1e-3, 1e-4, 1e-3),
        (0.24, 1e-3, 1e-4, 1e-2),
        (5, 1e-3, 1e-5, 1e-2),
        (7, 1e-3, 0, 1e-2),
        (9, 1e-3, 0, 1e-3),
        (22, 1e-4, 0, 1e-4),
        (42, 1e-5, 0, 1e-5),
        (53.9, 1e-5, 0, 1e-5),
    ):
        assert [rate(config, epoch, layer) for layer in ("conv6", "fc6", "conv1", "fc8")] == pytest.approx(
            [others, others, first, last]
        ), epoch
        assert rate(config, epoch, "fc8", "bias") == rate(config, epoch, "conv2", "bias") == 0.02
        assert rate(config, epoch, "conv1", "bias") == (0.02 if epoch < 7 else 0)
    pretrained = recipe("imagenet-2012-conv6-pretrain")
    assert [rate(pretrained, epoch, "conv5") for epoch in (0, 6, 8)] == [0.001] * 3
    assert [rate(pretrained, epoch, "bottleneck") for epoch in (0, 5.9, 6)] == [0.01, 0.01, 0.001]
    assert rate(pretrained, 7, "conv1", "bias") == 0.02


def test_each_begins_with_a_net_that_fits() -> None:
    """145, then 146 on the set of 2011, then 146: what each takes is there, and what is not there is named."""
    names = ("imagenet-2012", "imagenet-2012-conv6-pretrain", "imagenet-2012-conv6-finetune")
    for (earlier, later), needed in zip(itertools.pairwise(names), ("conv6, bottleneck, fc8", "fc8"), strict=True):
        config = recipe(later)
        assert config.finetune.source == f"runs/{earlier}" == str(recipe(earlier).run_folder)
        ours, theirs = (network_of(one, load_spec(one.network.name)) for one in (config, recipe(earlier)))
        check_fits(config.finetune.new_layers, ours, theirs, earlier)
        with pytest.raises(CheckpointError, match=rf"name {needed} in finetune\.new_layers"):
            check_fits((), ours, theirs, earlier)


def test_the_paper() -> None:
    config = recipe("imagenet-2012-paper")
    assert (config.network.name, config.run.epochs, config.data.batch_size) == ("alexnet-2012-paper", 90, 128)
    assert (config.schedule.name, config.schedule.factor, config.optimizer.lr) == ("plateau", 0.1, 0.01)
    assert config.data.augment.colour.rule == "as-written"


@pytest.mark.parametrize("name", ["imagenet-170", *(name for name in NAMES if name.startswith("imagenet-2014-b"))])
def test_stairs(name: str) -> None:
    """dexp: weights fall by 250 in four steps, biases by 10 in two; the rate is 0.01 for each 128 images."""
    config = recipe(name)
    times, epochs = config.data.batch_size / 128, config.run.epochs
    assert epochs is not None
    for quarter, weights in enumerate((0.01, 0.001587, 0.000252, 0.00004)):
        inside = (quarter + 0.5) / 4 * epochs
        assert rate(config, inside) == pytest.approx(times * weights, rel=1e-3)
        assert rate(config, inside, "fc6", "bias") == pytest.approx(times * (0.02 if quarter < 2 else 0.002))


def test_cuda_convnet2() -> None:
    """Its five topologies: three by data alone, one by columns, one by both."""
    batches = {name: recipe(f"imagenet-2014-{name}") for name in ("b128", "b256", "b512", "b1024")}
    assert [config.data.batch_size for config in batches.values()] == [128, 256, 512, 1024]
    assert {(config.network.name, config.run.epochs) for config in batches.values()} == {("one-tower-2014", 90)}
    both = values(recipe("imagenet-2014-4gpu-data-model"))
    assert both["parallel"]["replicas"] == 4
    same = values(batches["b512"])
    assert all(both[key] == same[key] for key in both if key not in ("run", "parallel"))
    columns = recipe("imagenet-2014-2gpu-model")
    assert (columns.network.name, columns.parallel.columns, columns.data.batch_size) == ("alexnet-2012", 2, 128)
    assert [rate(columns, epoch, "fc6", "bias") for epoch in (44, 46)] == pytest.approx([0.04, 0.04 / 25])


@pytest.mark.parametrize(
    ("name", "batch_size", "lr", "warmup_steps"),
    [("4k", 4096, 10, 1200), ("8k", 8192, 10, 600), ("16k", 16384, 24, 400), ("32k", 32768, 32, 400)],
)
def test_lars(name: str, batch_size: int, lr: float, warmup_steps: int) -> None:
    config = recipe(f"imagenet-lars-bn-{name}")
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay, optimizer.trust) == (
        "lars", lr, 0.9, 0.0005, 0.001,
    )  # fmt: skip
    assert (schedule.name, schedule.power, schedule.warmup_lr) == ("poly", 2, 1)
    assert schedule.warmup_epochs * IMAGENET_IMAGES / batch_size == pytest.approx(warmup_steps, rel=2e-3)
    assert (config.run.epochs, config.data.batch_size) == (100, batch_size)
    assert batch_size // config.batch_norm_parts == 128
    assert (config.network.name, config.data.image_size) == ("alexnet-bn-2", 227)


def test_batch_norm_with_plain_momentum() -> None:
    config = recipe("imagenet-bn-512")
    assert (config.optimizer.name, config.optimizer.lr, config.data.batch_size) == ("sgd-2012", 0.08, 512)
    assert (config.schedule.name, config.schedule.power, config.run.epochs) == ("poly", 2, 100)


def test_torchvision() -> None:
    config = recipe("imagenet-torchvision")
    assert config.data.mean == pytest.approx((255 * 0.485, 255 * 0.456, 255 * 0.406))
    assert (config.data.batch_size, config.data.augment.crop, config.data.augment.mirror) == (256, "resized", True)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.weight_decay) == ("sgd", 0.01, 0.0001)
    assert [rate(config, epoch) for epoch in (0, 30, 60, 89)] == pytest.approx([1e-2, 1e-3, 1e-4, 1e-4])


def test_caffe() -> None:
    """450,000 iterations of 256 images, a drop every 100,000."""
    for name in ("bvlc-alexnet", "caffenet"):
        config = recipe(f"imagenet-{name}")
        assert (config.network.name, config.data.batch_size, config.data.image_size) == (name, 256, 227)
        assert config.run.epochs == pytest.approx(450_000 * 256 / IMAGENET_IMAGES, rel=2e-3)
        assert config.schedule.at_epochs == pytest.approx(
            [drop * 100_000 * 256 / IMAGENET_IMAGES for drop in (1, 2, 3, 4)], rel=2e-3
        )


def test_the_four_layouts_are_one_run() -> None:
    layouts = {"data": (1, 1), "columns-2012": (2, 1), "hybrid-2014": (1, 8), "columns-x-replicas": (2, 4)}
    assert {name for name in NAMES if "layout" in name} == {f"imagenet-layout-{name}" for name in layouts}
    found = {name: values(recipe(f"imagenet-layout-{name}")) for name in layouts}
    for name, config in found.items():
        assert (config["parallel"]["columns"], config["parallel"]["replicas"]) == layouts[name]
        assert all(config[key] == found["data"][key] for key in config if key not in ("run", "parallel"))
        assert config["run"] | {"name": ""} == found["data"]["run"] | {"name": ""}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("cifar")])
def test_cifar(name: str) -> None:
    config = recipe(name)
    assert config.network.name == name
    assert (config.network.num_classes, config.data.batch_size, config.data.resize) == (10, 128, 32)
    assert (config.optimizer.lr, config.optimizer.momentum, config.optimizer.weight_decay) == (0.001, 0.9, 0.004)
    last = {"cifar-80sec": (9, 1e-4, 2e-4), "cifar-18pct": (135, 1e-5, 2e-5), "cifar-11pct": (515, 1e-5, 2e-3)}[name]
    assert rate(config, last[0], "conv1") == pytest.approx(last[1])
    assert rate(config, last[0], "conv1", "bias") == pytest.approx(last[2])
