"""Every setting, with its meaning and unit, checked before anything starts. The defaults are the recipe of 2012.

A config is YAML; dotted overrides (`data.batch_size=256`) are laid over it; an unknown key is refused with the nearest
known one. This is the only door to YAML for settings.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from dist_alexnet.errors import ConfigError, LayoutError
from shards.order import auto_lanes

Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """Frozen, and strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


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


class Augment(Section):
    crop: bool = Field(True, description="random crop of image_size from resize; centre crop if false")
    mirror: bool = Field(True, description="random left-right flip")


class BadSamples(Section):
    max_fraction: float = Field(0.001, description="stop when more than this part of the pictures failed", ge=0, le=1)


class Data(Section):
    train: str | None = Field(None, description="training set: URL of an index, or a pattern of its shards")
    val: str | None = Field(None, description="validation set, likewise; none: no evaluation")
    batch_size: Positive = Field(128, description="images in one optimizer step, over all ranks")
    workers: int = Field(2, description="loader processes a rank (0: load in the rank itself)", ge=0)
    resize: Positive = Field(256, description="short side, in pixels, at which the crop is thought")
    image_size: Positive = Field(224, description="side of the square the network sees, in pixels")
    mean: tuple[float, float, float] = Field(
        (127.305, 119.715, 104.913), description="R, G, B subtracted from the pixels (0-255); the default is ImageNet's"
    )
    lanes: Positive | Literal["auto"] = Field(
        "auto", description="lanes of the order, divides batch_size; auto: the largest power of two up to 64 that does"
    )
    window_shards: int = Field(8, description="shuffle window inside a lane, in shards (0: none)", ge=0)
    exclude: tuple[str, ...] = Field((), description="names of training shards to leave out")
    augment: Augment = Augment()
    bad_samples: BadSamples = BadSamples()

    @property
    def lane_count(self) -> int:
        """`lanes` as a number."""
        return auto_lanes(self.batch_size) if self.lanes == "auto" else self.lanes

    @model_validator(mode="after")
    def _fits(self) -> "Data":
        if self.batch_size % self.lane_count:
            raise ValueError(
                f"data.lanes is {self.lanes}, expected a divisor of data.batch_size ({self.batch_size}), or auto"
            )
        if self.image_size > self.resize:
            raise ValueError(f"data.image_size is {self.image_size}, expected at most data.resize ({self.resize})")
        return self


class Network(Section):
    name: str = Field("alexnet-2012", description="a preset, or the path of a YAML file that describes a network")
    num_classes: Positive = Field(1000, description="classes of the last layer")
    width: float = Field(1.0, description="multiplier of every layer's width but the last one's", gt=0)
    dropout: float | None = Field(None, description="rate in place of the preset's (0: none)", ge=0, lt=1)


class Parallel(Section):
    columns: Literal[1, 2] = Field(1, description="ranks over which the columns lie; 1: both columns on each rank")
    replicas: Positive = Field(1, description="ranks of a model group that share its images between them")
    micro_batch: Positive | None = Field(
        None, description="images of one model group in one forward (default: its whole part of the batch)"
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(0, description="what DeepSpeed cuts over the data ranks")

    @property
    def group_ranks(self) -> int:
        """Ranks that hold one copy of the network between them."""
        return self.columns * self.replicas


class Optimizer(Section):
    name: Literal["sgd-2012", "sgd"] = Field(
        "sgd-2012", description="sgd-2012: learning rate inside the momentum, as run in 2012; sgd: torch's rule"
    )
    lr: float = Field(0.01, description="learning rate of weights; a network sets multiples of it", ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="part of the last update that goes on")
    weight_decay: float = Field(0.0005, description="decay of weights; a network sets multiples of it", ge=0)
    nesterov: bool = Field(False, description="look ahead (sgd only)")
    clip_norm: float = Field(0.0, description="largest norm of the whole gradient (0: no clipping)", ge=0)

    @model_validator(mode="after")
    def _goes_together(self) -> "Optimizer":
        if self.nesterov and self.name != "sgd":
            raise ValueError(f"optimizer.nesterov goes with name sgd only, found {self.name}: set it to false")
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.momentum is 0.0, expected more than 0 with nesterov")
        return self


class Schedule(Section):
    name: Literal["constant", "steps"] = Field("steps", description="steps: lr times factor at each of at_epochs")
    at_epochs: tuple[float, ...] = Field((25.0, 51.0, 79.0), description="where the rate drops, in epochs, rising")
    factor: float = Field(0.1, description="what the rate is multiplied by at each of them", gt=0)

    @model_validator(mode="after")
    def _rising(self) -> "Schedule":
        if list(self.at_epochs) != sorted(set(self.at_epochs)) or any(at < 0 for at in self.at_epochs):
            raise ValueError(f"schedule.at_epochs is {list(self.at_epochs)}, expected rising numbers from 0 on")
        return self


class Checkpoint(Section):
    every_steps: Positive | None = Field(
        None, description="save each time this many steps are done (always at the end)"
    )
    every_epochs: float | None = Field(1.0, description="save at the first step past each multiple", gt=0)
    keep: Positive = Field(3, description="how many good checkpoints stay in the run folder")


class Evaluate(Section):
    every_epochs: float | None = Field(1.0, description="evaluate at the first step past each multiple", gt=0)
    every_steps: Positive | None = Field(None, description="evaluate each time this many steps are done")
    batch_size: Positive = Field(256, description="images in one forward of evaluation, over all ranks")


class Wandb(Section):
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online where there is a key, offline otherwise"
    )
    project: str = Field("dist-alexnet", description="W&B project")
    entity: str | None = Field(None, description="W&B user or team")


class Log(Section):
    every_steps: Positive = Field(20, description="steps between two lines of metrics")
    sample_keys: bool = Field(False, description="write the keys that each rank saw to keys/rank-NNNNN.jsonl")
    wandb: Wandb = Wandb()


class Config(Section):
    run: Run = Run()
    data: Data = Data()
    network: Network = Network()
    parallel: Parallel = Parallel()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="of convolutions and products; weights stay fp32. auto: bf16 on a GPU that has it, else fp32",
    )
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    log: Log = Log()

    @property
    def run_folder(self) -> Path:
        return Path(self.run.dir) / self.run.name

    @model_validator(mode="after")
    def _micro_batches(self) -> "Config":
        micro, replicas = self.parallel.micro_batch, self.parallel.replicas
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


def fields_of(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf setting as (dotted key, field), for errors, docs and tests."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields_of(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _sentence(error: ValidationError) -> str:
    """The first thing wrong, as one sentence."""
    first = error.errors()[0]
    steps = [str(step) for step in first["loc"]]
    key = ".".join(step for step in steps if step != "constrained-int" and not step.startswith("literal["))
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
