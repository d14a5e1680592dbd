"""Every setting, with its meaning and unit, checked before anything starts. The defaults are the recipe of 2012.

A config is YAML; dotted overrides (`data.batch_size=256`) are laid over it; an unknown key is refused with the nearest
known one. This is the only door to YAML for settings.
"""

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from dist_alexnet.errors import ConfigError, LayoutError
from shards.errors import InputError
from shards.order import auto_lanes
from shards.storage import check_folder, shown

Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """Frozen, and strict about keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        populate_by_name=True,  # in code, where the key is a word of Python
        serialize_by_alias=True,
    )


def _checked_url(key: str, url: str | None) -> str | None:
    """The URL. Raises ValueError where it holds a secret."""
    if url is not None and shown(url) != url:
        raise ValueError(
            f"{key}: the URL {shown(url)} has a user, a password or a query, which would stand in config.yaml, "
            "checkpoints and W&B: give secrets to the client library by its environment variables or its credentials "
            "file"
        )
    return url


class Run(Section):
    name: str = Field("alexnet", description="name of the run: its folder is <dir>/<name>", pattern=r"^[\w.-]+$")
    dir: str = Field("runs", description="folder of runs, on a file system that all nodes share")
    seed: int = Field(
        0,
        description="start of everything random: order, augmentation, dropout, initial values",
        ge=-(2**63),
        lt=2**63,
    )
    epochs: float | None = Field(None, description="length in passes over the training set (90 if steps is not set)")
    steps: int | None = Field(None, description="length in optimizer steps, instead of epochs", ge=0)
    deterministic: bool = Field(False, description="bit-identical repetition on the same layout, slower on GPUs")
    max_minutes: float | None = Field(
        None, description="save and stop after so many minutes of this start, to be started again", gt=0
    )

    @model_validator(mode="after")
    def _one_length(self) -> "Run":
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"run has epochs ({self.epochs}) and steps ({self.steps}), expected one of them: set the other to null"
            )
        if self.epochs is not None and self.epochs <= 0:
            raise ValueError(f"run.epochs is {self.epochs}, expected more than 0")
        if self.name in (".", ".."):
            raise ValueError(f"run.name is {self.name!r}, expected a name for a folder")
        return self


class Colour(Section):
    deviation: float = Field(
        0.0, description="standard deviation of the colour noise, in parts of the set's own (0: none; 2012: 0.1)", ge=0
    )
    rule: Literal["as-run", "as-written"] = Field(
        "as-run", description="as-run: 2012's code, divides by 1 + deviation; as-written: the paper's 4.1"
    )
    chunk: Positive = Field(1, description="consecutive places on the line of samples that share their noise")
    until_epoch: float | None = Field(None, description="no noise from this epoch on (2012: 67)", ge=0)


class Augment(Section):
    crop: Literal["random", "centre", "resized"] = Field(
        "random",
        description="random: image_size from resize, anywhere; centre; resized: a box of any size and shape, resampled",
    )
    crop_chunk: Positive = Field(
        1, description="consecutive places on the line of samples that share crop and flip (2012's code: 32)"
    )
    resized_scale: tuple[float, float] = Field((0.08, 1.0), description="crop resized: part of the picture's area")
    resized_ratio: tuple[float, float] = Field((0.75, 4 / 3), description="crop resized: width / height of the box")
    mirror: bool = Field(True, description="random left-right flip")
    colour: Colour = Colour()

    @field_validator("crop", mode="before")
    @classmethod
    def _as_a_word(cls, value: Any) -> Any:
        """true and false are random and centre."""
        return {True: "random", False: "centre"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _ranges(self) -> "Augment":
        least, most = self.resized_scale
        if not 0 < least <= most <= 1:
            raise ValueError(f"data.augment.resized_scale is {[least, most]}, expected two rising numbers up to 1")
        least, most = self.resized_ratio
        if not 0 < least <= most:
            raise ValueError(f"data.augment.resized_ratio is {[least, most]}, expected two rising numbers above 0")
        return self


class BadSamples(Section):
    max_fraction: float = Field(0.001, description="stop when more than this part of the pictures failed", ge=0, le=1)


class Cache(Section):
    dir: str | None = Field(
        None,
        description="folder on the node's own disk for whole shards from other storage, shared by its ranks and runs; "
        "none: each sample by a range read",
    )
    max_bytes: Positive | None = Field(
        None, description="how large that folder may become (none: as the disk allows, 5 % stay free)"
    )


class Data(Section):
    train: str | None = Field(None, description="training set: URL of an index, or a pattern of its shards")
    val: str | None = Field(None, description="validation set, likewise; none: no evaluation")
    batch_size: Positive = Field(128, description="images in one optimizer step, over all ranks")
    workers: int = Field(2, description="loader processes a rank (0: load in the rank itself)", ge=0)
    resize: Positive = Field(256, description="short side, in pixels, at which the crop is thought")
    image_size: Positive = Field(224, description="side of the square the network sees, in pixels")
    mean: tuple[float, float, float] | Literal["colour", "image"] = Field(
        (127.305, 119.715, 104.913),
        description="R, G, B subtracted from the pixels (0-255), by default ImageNet's; colour, image: of statistics",
    )
    statistics: str = Field(
        "imagenet",
        description="where mean and colour noise come from: imagenet, or URL of a .statistics.json (shards info)",
    )
    decoder: Literal["auto", "pillow", "simplejpeg", "region", "nvjpeg"] = Field(
        "auto",
        description="what decodes JPEGs, all to the same pixels but nvjpeg, which is for GPUs; auto: the fastest on a "
        "host's CPU",
    )
    share_decoding: bool = Field(
        False, description="columns of one replica each decode a part of its pictures, and exchange the pixels"
    )
    lanes: Positive | Literal["auto"] = Field(
        "auto", description="lanes of the order, divides batch_size; auto: the largest power of two up to 64 that does"
    )
    window_shards: int = Field(8, description="shuffle window inside a lane, in shards (0: none)", ge=0)
    exclude: tuple[str, ...] = Field((), description="names of training shards to leave out")
    augment: Augment = Augment()
    bad_samples: BadSamples = BadSamples()
    cache: Cache = Cache()

    @property
    def lane_count(self) -> int:
        """`lanes` as a number."""
        return auto_lanes(self.batch_size) if self.lanes == "auto" else self.lanes

    @field_validator("train", "val", "statistics")
    @classmethod
    def _without_secrets(cls, url: str | None, info: ValidationInfo) -> str | None:
        return _checked_url(f"data.{info.field_name}", url)

    @model_validator(mode="after")
    def _fits(self) -> "Data":
        if self.batch_size % self.lane_count:
            raise ValueError(
                f"data.lanes is {self.lanes}, expected a divisor of data.batch_size ({self.batch_size}), or auto"
            )
        if self.image_size > self.resize:
            raise ValueError(f"data.image_size is {self.image_size}, expected at most data.resize ({self.resize})")
        if self.mean == "image" and self.statistics == "imagenet":
            raise ValueError(
                "data.mean is image, but data.statistics imagenet has no mean image: compute it with `dist-alexnet "
                "shards info INDEX --statistics`, and set data.statistics to the file that it writes"
            )
        return self


class Network(Section):
    name: str = Field("alexnet-2012", description="a preset, or the path of a YAML file that describes a network")
    num_classes: Positive = Field(1000, description="classes of the last layer")
    width: float = Field(1.0, description="multiplier of every layer's width but the last one's", gt=0)
    dropout: float | None = Field(None, description="rate in place of the preset's (0: none)", ge=0, lt=1)
    batch_norm_groups: Positive | Literal["auto"] = Field(
        "auto",
        description="parts of the global batch that are normalised apart, divides it; auto: as many, a power of two, "
        "as leave 32 images to each",
    )


class Finetune(Section):
    source: str | None = Field(
        None,
        alias="from",
        description="checkpoint whose weights and running statistics, but no momentum, a new run begins with: path or "
        "URL of a step, or of a run (its newest step); read at the start of the run only",
    )
    new_layers: tuple[str, ...] = Field(
        (), description="layers that begin as those of a fresh network, such as [fc8] for other classes"
    )

    @field_validator("source")
    @classmethod
    def _without_secrets(cls, url: str | None) -> str | None:
        return _checked_url("finetune.from", url)

    @model_validator(mode="after")
    def _goes_together(self) -> "Finetune":
        if self.new_layers and self.source is None:
            raise ValueError(
                f"finetune.new_layers is {list(self.new_layers)}, but finetune.from is not set: a run from nothing "
                "draws all of its layers anew"
            )
        return self


class Parallel(Section):
    columns: Literal[1, 2] = Field(1, description="ranks over which the columns lie; 1: both columns on each rank")
    replicas: Positive = Field(1, description="ranks of a model group that share its images between them")
    micro_batch: Positive | None = Field(
        None, description="images of one model group in one forward (default: its whole part of the batch)"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="what DeepSpeed cuts over the data ranks")
    exchange: Literal["full", "bf16", "fp16"] = Field(
        "full", description="activations and their gradients on the wire; full: as they are computed"
    )
    channels_last: bool = Field(False, description="memory format of activations (parameters stay contiguous)")
    overlap: bool = Field(
        False, description="a convolution that reads both columns begins with its own while the other travels"
    )

    @property
    def group_ranks(self) -> int:
        """Ranks that hold one copy of the network between them."""
        return self.columns * self.replicas


class Optimizer(Section):
    name: Literal["sgd-2012", "sgd", "lars", "adamw"] = Field(
        "sgd-2012",
        description="sgd-2012: learning rate inside the momentum, as run in 2012; sgd: torch's rule; lars: rates that "
        "adapt to each tensor; adamw",
    )
    lr: float = Field(0.01, description="learning rate of weights; a network sets multiples of it", ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="part of the last update that goes on (not adamw)")
    weight_decay: float = Field(0.0005, description="decay of weights; a network sets multiples of it", ge=0)
    nesterov: bool = Field(False, description="look ahead (sgd only)")
    trust: float = Field(0.001, description="update of a tensor in parts of its norm, at lr 1 (lars only)", gt=0)
    adapt_vectors: bool = Field(
        True, description="biases, scales and shifts adapt, too; else their rate is lr itself (lars only)"
    )
    betas: tuple[float, float] = Field(
        (0.9, 0.999), description="what stays of the means of gradients and of their squares (adamw only)"
    )
    eps: float = Field(1e-8, description="added to the root of the mean of squares (adamw only)", gt=0)
    clip_norm: float = Field(0.0, description="largest norm of the whole gradient (0: no clipping)", ge=0)

    @model_validator(mode="after")
    def _goes_together(self) -> "Optimizer":
        _refuse_others(self, "optimizer", _OPTIMIZER_FIELDS)
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.momentum is 0.0, expected more than 0 with nesterov")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas is {list(self.betas)}, expected two numbers from 0 on, less than 1")
        return self

    def chosen(self) -> dict[str, Any]:
        """The settings that matter to this rule, as plain values."""
        return _chosen(self, _OPTIMIZER_FIELDS)


class Phase(Section):
    """One entry of a manual schedule: from `epoch` on, the rates of weights, of biases, or of both are these."""

    epoch: float = Field(ge=0)
    layers: tuple[str, ...] = ()  # none: all that no phase names
    weights: float | None = Field(None, ge=0)
    biases: float | None = Field(None, ge=0)


class Schedule(Section):
    name: Literal["constant", "steps", "manual", "plateau", "dexp", "poly", "cosine"] = Field(
        "steps",
        description="constant; steps: lr times factor at each of at_epochs; manual: phases; plateau: lr times factor "
        "when the validation error stands still; dexp: equal stairs; poly: (1 - part of the run)^power; cosine",
    )
    at_epochs: tuple[float, ...] = Field(
        (25.0, 51.0, 79.0), description="steps: where the rate drops, in epochs, rising"
    )
    factor: float = Field(0.1, description="steps, plateau: what the rate is multiplied by at each drop", gt=0)
    phases: tuple[Phase, ...] = Field(
        (),
        description="manual: list of {epoch, layers, weights, biases}: from that epoch on the rates of these layers' "
        "weights and biases (no layers: all that no phase names); before, lr and the network's multipliers",
    )
    patience: Positive = Field(3, description="plateau: evaluations without a better one after which the rate drops")
    threshold: float = Field(0.0, description="plateau: a better one has a top-1 error less by more than this", ge=0)
    fall: float = Field(250.0, description="dexp: what the rate is divided by from the first stair to the last", gt=0)
    stairs: Positive = Field(4, description="dexp: stairs of equal length over the run")
    bias_fall: float | None = Field(None, description="dexp: fall of the biases (default: as the weights)", gt=0)
    bias_stairs: Positive | None = Field(None, description="dexp: stairs of the biases (default: as the weights)")
    power: float = Field(2.0, description="poly: 1 falls straight to 0 at the end of the run", gt=0)
    warmup_epochs: float = Field(0.0, description="straight rise from warmup_lr to the schedule, in epochs", ge=0)
    warmup_lr: float = Field(0.0, description="rate of the first step of a warm-up", ge=0)

    @model_validator(mode="after")
    def _fits(self) -> "Schedule":
        # What goes with steps, the default, may stay in a config over which an override lays another name.
        others = {key: names for key, names in _SCHEDULE_FIELDS.items() if "steps" not in names}
        _refuse_others(self, "schedule", others)
        if list(self.at_epochs) != sorted(set(self.at_epochs)) or any(at < 0 for at in self.at_epochs):
            raise ValueError(f"schedule.at_epochs is {list(self.at_epochs)}, expected rising numbers from 0 on")
        epochs = [phase.epoch for phase in self.phases]
        if epochs != sorted(epochs):
            raise ValueError(f"schedule.phases begin at epochs {epochs}, expected them in order")
        if self.name == "manual" and not self.phases:
            raise ValueError("schedule.phases is empty, expected at least one phase with name manual")
        for phase in self.phases:
            if phase.weights is None and phase.biases is None:
                raise ValueError(
                    f"schedule.phases has one at epoch {phase.epoch} without a rate: give weights or biases"
                )
        if self.warmup_lr and not self.warmup_epochs:
            raise ValueError(f"schedule.warmup_lr is {self.warmup_lr} without warmup_epochs, expected both or none")
        return self

    @property
    def named_layers(self) -> frozenset[str]:
        """Layers that have rates of their own."""
        return frozenset(layer for phase in self.phases for layer in phase.layers)

    @property
    def needs_length(self) -> bool:
        """Whether the rate depends on how long the run is."""
        return self.name in ("dexp", "poly", "cosine")

    def chosen(self) -> dict[str, Any]:
        """The settings that matter to this schedule, as plain values."""
        return _chosen(self, _SCHEDULE_FIELDS)


# Which names a field goes with; the others go with all.
_OPTIMIZER_FIELDS = {
    "momentum": ("sgd-2012", "sgd", "lars"),
    "nesterov": ("sgd",),
    "trust": ("lars",),
    "adapt_vectors": ("lars",),
    "betas": ("adamw",),
    "eps": ("adamw",),
}
_SCHEDULE_FIELDS = {
    "at_epochs": ("steps",),
    "factor": ("steps", "plateau"),
    "phases": ("manual",),
    **dict.fromkeys(("patience", "threshold"), ("plateau",)),
    **dict.fromkeys(("fall", "stairs", "bias_fall", "bias_stairs"), ("dexp",)),
    "power": ("poly",),
}


def _refuse_others(section: Any, where: str, goes_with: dict[str, tuple[str, ...]]) -> None:
    """Raise ValueError where a field that does nothing for the section's name is not at its default."""
    for key, names in goes_with.items():
        if section.name not in names and getattr(section, key) != type(section).model_fields[key].default:
            raise ValueError(
                f"{where}.{key} goes with name {' or '.join(names)} only, found {section.name}: leave it out, or "
                f"change {where}.name"
            )


def _chosen(section: Any, goes_with: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    values: dict[str, Any] = section.model_dump(mode="json")
    return {key: value for key, value in values.items() if section.name in goes_with.get(key, (section.name,))}


class Checkpoint(Section):
    every_steps: Positive | None = Field(
        None, description="save each time this many steps are done (always at the end)"
    )
    every_epochs: float | None = Field(1.0, description="save at the first step past each multiple", gt=0)
    every_minutes: float | None = Field(None, description="save when the last save is so many minutes old", gt=0)
    url: str | None = Field(
        None,
        description="folder or URL (s3://, gs://, az://) of this run's checkpoints alone, instead of <run folder>/"
        "checkpoints; credentials come from the environment",
    )
    keep: Positive = Field(3, description="how many of the newest checkpoints stay")
    keep_every_steps: Positive | None = Field(None, description="checkpoints of multiples of this stay, too")
    keep_best: bool = Field(True, description="the one with the best top-1 on the validation set is saved, and stays")
    background: bool = Field(
        True, alias="async", description="write beside training, from a copy in host memory (else wait for it)"
    )
    max_failures: int = Field(3, description="saves in a row that may fail before the run stops", ge=0)

    @field_validator("url")
    @classmethod
    def _lasting_place(cls, url: str | None) -> str | None:
        try:
            if url is not None:
                check_folder(url)
        except InputError as error:
            raise ValueError(f"checkpoint.url: {error}") from None
        return url


class Evaluate(Section):
    every_epochs: float | None = Field(1.0, description="evaluate at the first step past each multiple", gt=0)
    every_steps: Positive | None = Field(None, description="evaluate each time this many steps are done")
    batch_size: Positive = Field(256, description="images in one forward of evaluation, over all ranks")
    views: Literal[1, 10] = Field(
        1, description="of an image: its centre; or 2012's ten, probabilities averaged, at ten times the work"
    )


class Spike(Section):
    factor: float | None = Field(
        None, description="a loss above so many times the median of the last steps is a spike (none: do not look)", gt=1
    )
    window_steps: Positive = Field(100, description="how many steps that median is of; before as many none is a spike")
    action: Literal["stop", "skip", "rollback"] = Field("stop", description="what a spike does; as not_finite")


class Divergence(Section):
    not_finite: Literal["stop", "skip", "rollback"] = Field(
        "stop",
        description="what a loss or gradient that is not finite does; skip: the step changes nothing; rollback: to the "
        "last good checkpoint, and what was seen since then is not seen again",
    )
    max_skipped_in_a_row: int = Field(3, description="steps in a row that may be skipped before the run stops", ge=0)
    max_skipped_steps: int = Field(100, description="steps of the whole run that may be, likewise", ge=0)
    max_rollbacks: int = Field(3, description="rollbacks of the whole run before it stops", ge=0)
    spike: Spike = Spike()


class Guard(Section):
    hang_s: float | None = Field(
        300.0,
        description="seconds without progress after which the run ends and says which rank holds it up (null: never); "
        "four times as long at the start and while a save is waited for; at least as long as storage is asked again",
        gt=0,
    )


class Wandb(Section):
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online where there is a key, offline otherwise"
    )
    project: str = Field("dist-alexnet", description="W&B project")
    entity: str | None = Field(None, description="W&B user or team")
    tags: tuple[str, ...] = Field((), description="labels by which runs are found again")
    group: str | None = Field(None, description="name under which runs are shown together")
    notes: str | None = Field(None, description="a sentence about the run")
    job_type: str | None = Field(None, description="kind of run inside of a group, such as train or ablation")
    alerts: bool = Field(True, description="message its owner when a start ends but by being done, or is rolled back")
    save_code: bool = Field(False, description="keep the code and the config as an artifact")
    checkpoints: bool = Field(False, description="name each checkpoint as a reference artifact: its URL, no copy")
    system_metrics: Literal["primary", "nodes"] = Field(
        "primary",
        description="CPU, GPU and network of rank 0's host; nodes: of all hosts, by W&B's shared mode, which is "
        "experimental there: what the service has is then not cut back on a resume",
    )


class Log(Section):
    every_steps: Positive = Field(20, description="steps between two lines of metrics")
    norms: bool = Field(
        True, description="in each line also L2 norms of gradient, weights and update of every tensor of the network"
    )
    peak_tflops: float | None = Field(
        None,
        gt=0,
        description="TFLOP/s of which one device is capable in this precision, for speed/mfu; null: by the GPU's name, "
        "where it is a known one",
    )
    sample_keys: bool = Field(False, description="write the keys that each rank saw to keys/rank-NNNNN.jsonl")
    pictures: bool = Field(
        True, description="after each evaluation draw filters, a batch and predictions to <run folder>/pictures"
    )
    digest_every_steps: Positive | None = Field(
        None, description="steps between two digests of weights and state in digests.jsonl, the same on every layout"
    )
    wandb: Wandb = Wandb()


class Config(Section):
    run: Run = Run()
    data: Data = Data()
    network: Network = Network()
    finetune: Finetune = Finetune()
    parallel: Parallel = Parallel()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="of convolutions and products; weights stay fp32. auto: bf16 on a GPU that has it, else fp32; fp16 "
        "scales the loss",
    )
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    divergence: Divergence = Divergence()
    guard: Guard = Guard()
    log: Log = Log()

    @property
    def run_folder(self) -> Path:
        return Path(os.path.expanduser(self.run.dir)) / self.run.name  # as the folders of data are read

    @property
    def batch_norm_parts(self) -> int:
        """`network.batch_norm_groups` as a number: a function of the batch alone, never of the layout."""
        if self.network.batch_norm_groups != "auto":
            return self.network.batch_norm_groups
        parts = 1
        while self.data.batch_size % (2 * parts) == 0 and self.data.batch_size // (2 * parts) >= 32:
            parts *= 2
        return parts

    @model_validator(mode="after")
    def _rates(self) -> "Config":
        if self.optimizer.name == "lars" and self.parallel.zero_stage == 3:
            raise ValueError("parallel.zero_stage is 3, expected 0, 1 or 2 with optimizer.name lars")
        if self.schedule.name == "plateau":
            if self.data.val is None:
                raise ValueError("data.val is not set, expected a validation set with schedule.name plateau")
            if self.evaluate.every_epochs is None and self.evaluate.every_steps is None:
                raise ValueError(
                    "evaluate.every_epochs and evaluate.every_steps are null, expected one of them with schedule.name "
                    "plateau"
                )
        return self

    @model_validator(mode="after")
    def _micro_batches(self) -> "Config":
        micro, replicas = self.parallel.micro_batch, self.parallel.replicas
        if self.data.batch_size % self.batch_norm_parts:
            raise ValueError(
                f"network.batch_norm_groups is {self.batch_norm_parts}, expected a divisor of data.batch_size "
                f"({self.data.batch_size})"
            )
        if micro is not None and self.data.batch_size % micro:
            raise ValueError(
                f"parallel.micro_batch is {micro}, expected a divisor of data.batch_size ({self.data.batch_size})"
            )
        if micro is not None and micro % replicas:
            raise ValueError(f"parallel.micro_batch is {micro}, expected a multiple of parallel.replicas ({replicas})")
        return self


class Batches(Section):
    """How a global batch falls on a world."""

    data_ranks: int = Field(description="model groups in the world")
    micro_batch: int = Field(description="images of one model group in one forward")
    accumulation: int = Field(description="forwards a step")


def batches_on(config: Config, world_size: int) -> Batches:
    """Cut the global batch over `world_size` ranks. Raises LayoutError where it does not come out even."""
    group, batch_size = config.parallel.group_ranks, config.data.batch_size
    cut = f"parallel.columns ({config.parallel.columns}) x parallel.replicas ({config.parallel.replicas})"
    if world_size % group:
        raise LayoutError(f"world size is {world_size}, expected a multiple of {cut} = {group}: change one of them")
    data_ranks = world_size // group
    if batch_size % (data_ranks * config.parallel.replicas):
        raise LayoutError(
            f"data.batch_size is {batch_size}, expected a multiple of {data_ranks} data ranks x "
            f"{config.parallel.replicas} replicas: change it, or the number of ranks"
        )
    micro_batch = config.parallel.micro_batch or batch_size // data_ranks
    if batch_size % (data_ranks * micro_batch):
        raise LayoutError(
            f"data.batch_size is {batch_size}, expected a multiple of {data_ranks} data ranks x "
            f"parallel.micro_batch ({micro_batch}): change one of them"
        )
    columns, images = config.parallel.columns, micro_batch // config.parallel.replicas
    if config.data.share_decoding and images % columns:
        raise LayoutError(
            f"data.share_decoding is true, but a replica's {images} images in one forward are no multiple of "
            f"parallel.columns ({columns}): change parallel.micro_batch or data.batch_size, or set it to false"
        )
    return Batches(
        data_ranks=data_ranks, micro_batch=micro_batch, accumulation=batch_size // (data_ranks * micro_batch)
    )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config and lay dotted `key=value` overrides over it. Raises ConfigError in one sentence."""
    if not Path(path).is_file():
        raise ConfigError(f"config {path} is not a file: give the path of a YAML file, such as configs/quickstart.yaml")
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r} has no '=', expected key=value such as data.batch_size=256")
    try:
        written = OmegaConf.load(path)
        if not OmegaConf.is_dict(written):
            raise ConfigError(f"config {path} holds a list, expected sections such as run: and data:")
        tree = OmegaConf.merge(written, OmegaConf.from_dotlist(list(overrides)))
        if "${oc." in OmegaConf.to_yaml(tree):
            raise ConfigError(f"config {path} reads the environment with ${{oc...}}: write the value, or key=value")
        values = cast(dict[Any, Any], OmegaConf.to_container(tree, resolve=True))
    except (OmegaConfBaseException, OSError, ValueError) as error:
        raise ConfigError(f"config {path} cannot be read: {' '.join(str(error).split())}") from error
    except Exception as error:  # PyYAML's errors have no base that OmegaConf exports
        if type(error).__module__.split(".")[0] != "yaml":
            raise
        raise ConfigError(f"config {path} is not YAML: {' '.join(str(error).split())}") from error
    return config_from(values, str(path))


def config_from(values: dict[Any, Any], origin: str) -> Config:
    """Check plain values, as read from YAML or from a checkpoint. `origin` is named in the error (ConfigError)."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"config {origin}: {_sentence(error)}") from error


def to_yaml(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Plain sections as dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def fields_of(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf setting as (dotted key, field), for errors, docs and tests."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields_of(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{field.alias or name}", field


def _sentence(error: ValidationError) -> str:
    """The first thing wrong, as one sentence."""
    first = error.errors()[0]
    steps = [str(step) for step in first["loc"]]
    kinds = ("constrained-int", "literal[", "tuple[")  # a member of a union, which pydantic names as a step
    key = ".".join(step for step in steps if not step.startswith(kinds))
    if first["type"] == "extra_forbidden":
        near = _nearest(key)
        return f"unknown key {key}" + (f", did you mean {near}?" if near else ": see docs/config.md for all keys")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message
    fields = dict(fields_of())
    if first["type"] == "model_type":
        inside = [name for name in fields if name.startswith(f"{key}.")]
        return f"section {key} is {first['input']!r}, expected settings such as {inside[0] if inside else 'run.name'}"
    meaning = f" ({fields[key].description})" if key in fields else ""
    return f"{key}{meaning} is {first['input']!r}: {message[0].lower()}{message[1:]}"


def _nearest(key: str) -> str | None:
    known = [name for name, _ in fields_of()]
    sections = sorted({name.rsplit(".", 1)[0] for name in known if "." in name})
    elsewhere = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]  # right name, wrong section
    match = difflib.get_close_matches(key, elsewhere or known + sections, n=1, cutoff=0.0 if elsewhere else 0.6)
    return match[0] if match else None
