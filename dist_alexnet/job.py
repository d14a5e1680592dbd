"""What a config means on a world: sizes, data and network fitted together before any process group is made."""

import json
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from dist_alexnet.checkpoint.store import check
from dist_alexnet.config import Batches, Config, batches_on, config_from
from dist_alexnet.data.decode import decoder_here, decoder_identity
from dist_alexnet.data.statistics import Statistics, statistics_for, used_digest
from dist_alexnet.deepspeed_json import deepspeed_json
from dist_alexnet.environment import read_world
from dist_alexnet.errors import CheckpointError, ConfigError
from dist_alexnet.finetune import Source, check_fits, source_of
from dist_alexnet.network.batch_norm import Parts, parts_on
from dist_alexnet.network.build import check_layout
from dist_alexnet.network.sizes import Network, network_for
from dist_alexnet.network.spec import Spec, load_spec, spec_from
from dist_alexnet.parallel.layout import Layout
from shards.index import ShardIndex, read_index

EPOCHS_OF_2012 = 90.0  # paper, section 5


@dataclass(frozen=True)
class Job:
    """A config, its data and its network on a layout."""

    config: Config
    spec: Spec
    network: Network
    layout: Layout
    batches: Batches
    train: ShardIndex
    val: ShardIndex | None
    statistics: Statistics  # of pixels: for mean and colour noise
    source: Source | None = None  # what the run begins with, where that is the weights of another

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run: floor(epochs * N / B)."""
        if self.config.run.steps is not None:
            return self.config.run.steps
        return int(self.epochs * len(self.train) / self.config.data.batch_size)

    @property
    def epochs(self) -> Fraction:
        """Length of the whole run in passes over the training set, as the config has it."""
        if self.config.run.steps is not None:
            return Fraction(self.config.run.steps * self.config.data.batch_size, len(self.train))
        return exact(EPOCHS_OF_2012 if self.config.run.epochs is None else self.config.run.epochs)

    @property
    def batch_norm_parts(self) -> Parts:
        """How the parts that batch norm normalises apart fall on the ranks. Raises LayoutError where they do not."""
        if not self.network.statistics:
            return Parts()
        return parts_on(
            self.layout, self.config.data.batch_size, self.config.batch_norm_parts, self.batches.accumulation
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What makes a run this run and no other, as plain values: any layout may continue it, nothing else may."""
        config = self.config.model_dump(mode="json")
        data = config["data"]
        return {
            "data.augment": data["augment"],
            "data.batch_size": data["batch_size"],
            "data.digest": self.train.digest,
            "data.image_size": data["image_size"],
            "data.lanes": self.config.data.lane_count,
            "data.mean": data["mean"],
            "data.resize": data["resize"],
            "data.statistics": used_digest(self.config.data, self.statistics),
            "data.window_shards": data["window_shards"],
            "decoder": decoder_identity(self.config.data.decoder),
            **({"network.batch_norm_groups": self.config.batch_norm_parts} if self.network.statistics else {}),
            **{f"network.{key}": config["network"][key] for key in ("num_classes", "width", "dropout")},
            **{f"network.{key}": value for key, value in self.network.as_dict().items()},
            **self._what_it_begins_with(),
            "optimizer": self.config.optimizer.chosen(),
            "run.seed": config["run"]["seed"],
            "schedule": self.config.schedule.chosen(),
            **self._what_rates_hang_on(),
        }

    def _what_it_begins_with(self) -> dict[str, Any]:
        if self.source is None:
            return {}
        return {
            "finetune.digest": self.source.digest,
            "finetune.new_layers": sorted(set(self.config.finetune.new_layers)),
        }

    def _what_rates_hang_on(self) -> dict[str, Any]:
        """What some schedules make of the run's length and of its evaluations: part of the run's identity then."""
        schedule, evaluate = self.config.schedule, self.config.evaluate
        if schedule.needs_length:
            return {"run.length": str(self.epochs)}
        if schedule.name == "plateau" and self.val is not None:
            due = [evaluate.every_steps, evaluate.every_epochs]
            views = {} if evaluate.views == 1 else {"evaluate.views": evaluate.views}
            return {"data.val": self.val.digest, "evaluate.due": due, **views}
        return {}


def exact(number: float) -> Fraction:
    """A setting as it was written: 0.29 is 29/100, so that 0.29 epochs of 100 images are 29 and not 28."""
    return Fraction(str(number))


def make_job(config: Config, world_size: int, resume: str = "auto") -> Job:
    """Read the indexes and fit network, layout and batch to `world_size` ranks. Raises InputErrors; starts nothing.

    resume: as `train` has it; a checkpoint that it names knows what its run began with.
    """
    if config.data.train is None:
        raise ConfigError("data.train is not set, expected the URL of an index such as data/digits/train.index.json")
    batches = batches_on(config, world_size)
    layout = Layout(batches.data_ranks, config.parallel.replicas, config.parallel.columns)
    spec = load_spec(config.network.name)
    network = network_of(config, spec)
    check_layout(network, layout)
    check_phases(config, network)
    decoder_here(config.data.decoder)  # refused now, and not in a loader process
    train = read_index(config.data.train).without(config.data.exclude)
    val = read_index(config.data.val) if config.data.val else None
    for index in (train, val):
        if index is not None:
            check_classes(index, config.network.num_classes)
    check_same_classes(train, val)
    if len(train) < config.data.batch_size:
        raise ConfigError(
            f"the training set has {len(train)} images, expected at least data.batch_size ({config.data.batch_size})"
        )
    source = source_of(config, resume)
    if source is not None:
        check_source(config, network, source)
    job = Job(config, spec, network, layout, batches, train, val, statistics_for(config.data), source)
    _ = job.batch_norm_parts  # refused now, and not when the network is made
    return job


def network_of(config: Config, spec: Spec) -> Network:
    """The spec at the sizes that the config asks for."""
    return network_for(
        spec,
        num_classes=config.network.num_classes,
        width=config.network.width,
        image_size=config.data.image_size,
        dropout=config.network.dropout,
    )


def check_source(config: Config, network: Network, source: Source) -> None:
    """Raise CheckpointError or ConfigError where a run cannot begin with `source`. One that has begun is let be."""
    if source.commit is None:
        return
    where, state = str(source.folder), source.commit.state
    if "config" not in state or "network" not in state:
        raise CheckpointError(f"checkpoint {where} (finetune.from) does not say of which network it is")
    theirs = network_of(config_from(state["config"], where), spec_from(state["network"], where))
    check_fits(config.finetune.new_layers, network, theirs, where)


def check_phases(config: Config, network: Network) -> None:
    """Raise ConfigError if the schedule names a layer that learns nothing, or is not there."""
    layers = sorted({tensor.name.rpartition(".")[0] for tensor in network.tensors})
    for name in sorted(config.schedule.named_layers - set(layers)):
        raise ConfigError(f"schedule.phases names layer {name}, expected one of {', '.join(layers)}")


def check_classes(index: ShardIndex, num_classes: int) -> None:
    """Raise ConfigError if the set has labels that the network has no unit for."""
    if index.num_classes > num_classes:
        raise ConfigError(
            f"the {index.split} shards in {index.folder} have {index.num_classes} classes, network.num_classes is "
            f"{num_classes}: set it to at least {index.num_classes}"
        )


def check_same_classes(train: ShardIndex, val: ShardIndex | None) -> None:
    """Raise ConfigError if a class has another number in the validation set, where both sets name theirs."""
    named = () if val is None else zip(train.classes or (), val.classes or (), strict=False)
    for number, (here, there) in enumerate(named):
        if here != there:
            raise ConfigError(
                f"class {number} is {here!r} in data.train and {there!r} in data.val: build both sets with the same "
                "classes in the same order"
            )


def describe(config: Config) -> str:
    """What `train` would do on this world, checked against the data: for --dry-run."""
    job = make_job(config, read_world().world_size)
    layout, batches = job.layout, job.batches
    val = f"{len(job.val)} images" if job.val is not None else "none"
    unseen = job.total_steps * config.data.batch_size % len(job.train)
    decoder = decoder_here(config.data.decoder)
    begins: list[str] = []
    if job.source is not None:
        new = ", ".join(config.finetune.new_layers) or "none"
        begins = [f"begins     with {job.source.folder}, step {job.source.step}; new layers: {new}"]
        if job.source.commit is not None:
            check(job.source.folder)
    lines = [
        f"run        {config.run_folder}: {job.total_steps} steps of {config.data.batch_size} images; the last epoch "
        + (f"ends after {unseen} of {len(job.train)}" if unseen else "is whole"),
        f"train      {len(job.train)} images in {len(job.train.shards)} shards, {job.train.num_classes} classes",
        f"val        {val}",
        f"decoder    {decoder} " + ("if every rank has it" if decoder == "nvjpeg" else "on this host"),
        f"network    {config.network.name}: {job.network.parameters:,} parameters",
        *begins,
        f"layout     {layout.data} data x {layout.replicas} replicas x {layout.columns} columns, ZeRO stage "
        f"{config.parallel.zero_stage}",
        f"batch      {batches.accumulation} x {batches.micro_batch} images a model group, "
        f"{config.data.lane_count} lanes",
        f"deepspeed  {json.dumps(deepspeed_json(config, layout.world_size))}",
    ]
    return "\n".join(lines)
