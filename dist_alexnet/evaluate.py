"""The story of an evaluation: every image of the validation set once, on any number of ranks, or no figure at all."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_alexnet.checkpoint.commit import Found
from dist_alexnet.checkpoint.finding import resolve
from dist_alexnet.checkpoint.store import find, load
from dist_alexnet.config import Cache, Config, config_from
from dist_alexnet.crash import say_on_first_rank
from dist_alexnet.data.batch import Batch, Fault
from dist_alexnet.data.loader import Share, evaluation_batches
from dist_alexnet.data.nvjpeg import missing
from dist_alexnet.data.statistics import Statistics, mean_pixels, statistics_for, used_digest
from dist_alexnet.engine import Fragment, Kind
from dist_alexnet.environment import read_world
from dist_alexnet.errors import CheckpointError, EvaluationError, LayoutError
from dist_alexnet.job import check_classes, network_of
from dist_alexnet.network.build import Arithmetic, ColumnNetwork
from dist_alexnet.network.spec import Spec, spec_from
from dist_alexnet.parallel.agree import on_every_rank, together
from dist_alexnet.parallel.collectives import gather_over_columns
from dist_alexnet.parallel.layout import Layout, LogicalTensor
from dist_alexnet.parallel.mesh import Mesh, make_mesh
from dist_alexnet.parallel.start import distributed
from dist_alexnet.track.meter import batch_sums
from shards.index import ShardIndex, key_digest, read_index
from shards.storage import shown

Forward = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """Figures over a whole set. A picture that does not decode counts as wrong, and not in the loss."""

    loss: float  # mean over decoded images, natural logarithm
    top1: float  # part of all images
    top5: float
    images: int
    bad_images: int
    keys_digest: str  # hex; the sum of the keys' digests, equal to the index's
    faults: tuple[Fault, ...] = ()  # the bad images; `position` is the number in the index

    def as_dict(self) -> dict[str, Any]:
        """The figures and the bad images, as plain values."""
        return asdict(self)


def evaluate_checkpoint(checkpoint: str | Path, shards: str) -> Evaluation:
    """Evaluate the weights of a checkpoint (path or URL of a step or a run) on a set of shards, over all ranks."""
    world = read_world()
    with distributed(world) as device:
        together(lambda: resolve(checkpoint))
        index = together(lambda: read_index(shards))
        found, passed_over = find(checkpoint)
        for line in passed_over:
            say_on_first_rank(f"passed over: {line}")
        config, spec = declared(found)
        # Read once, perhaps on another machine than the run's: not through the cache that the run had.
        config = config.model_copy(update={"data": config.data.model_copy(update={"cache": Cache()})})
        statistics = together(lambda: same_statistics(found, config))
        check_classes(index, config.network.num_classes)
        network = network_of(config, spec)
        mesh = make_mesh(Layout(data=world.world_size), device.type)
        # Drawn from seed 0, and each element overwritten below.
        module = ColumnNetwork(network, mesh, 0, agreed_arithmetic(config, device)).to(device).eval()
        kinds: tuple[tuple[Kind, tuple[LogicalTensor, ...]], ...] = (
            ("weight", network.tensors),
            ("statistic", network.statistics),
        )
        parts = [
            Fragment(one.name, kind, module.values_of(one).data.view(-1), 0, one.elements)
            for kind, tensors in kinds
            for one in tensors
        ]
        load(found, parts)
        return evaluate(module, index, config, statistics, mesh, device)


def declared(found: Found) -> tuple[Config, Spec]:
    """What a checkpoint says of itself. Raises CheckpointError or ConfigError."""
    state = found.commit.state
    if "config" not in state or "network" not in state:
        raise CheckpointError(
            f"checkpoint {found.folder} does not say of which network it is: another version wrote it"
        )
    config = config_from(state["config"], str(found.folder))
    # As this host's CPU has it: the pixels are the same, or nearly, where the run decoded by nvJPEG.
    data = config.data.model_copy(update={"decoder": "auto"})
    return config.model_copy(update={"data": data}), spec_from(state["network"], str(found.folder))


def same_statistics(found: Found, config: Config) -> Statistics:
    """The statistics that the network was trained with. Raises CheckpointError where the file is another one now."""
    statistics = statistics_for(config.data)
    identity = found.commit.state.get("identity", {})
    if "data.statistics" in identity and identity["data.statistics"] != used_digest(config.data, statistics):
        raise CheckpointError(
            f"checkpoint {found.folder} was trained with other statistics than those of {shown(config.data.statistics)}"
            " (data.statistics): bring the right file back"
        )
    return statistics


def share_of(config: Config, mesh: Mesh) -> Share:
    """Which part of every batch this rank loads: its replica's, or its column's part of that (data.share_decoding)."""
    place, layout = mesh.place, mesh.layout
    share = Share(place.data_rank, layout.data, place.replica, layout.replicas)
    return replace(share, column=place.column, columns=layout.columns) if config.data.share_decoding else share


def whole_on(batch: Batch, config: Config, mesh: Mesh, device: torch.device) -> Batch:
    """What this rank loaded, on the device, with what the other columns of its replica loaded in its place.

    Keys and faults stay those that this rank loaded.
    """
    here = batch.to(device)
    return here.mapped(lambda values: gather_over_columns(values, mesh)) if config.data.share_decoding else here


@torch.no_grad()
def evaluate(
    forward: Forward,
    index: ShardIndex,
    config: Config,
    statistics: Statistics,
    mesh: Mesh,
    device: torch.device,
    after_each: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Loss, top-1 and top-5 of `forward` (in evaluation mode) over the whole index; all ranks get the same figures.

    after_each: called equally often on all ranks; what it raises ends the evaluation.

    Raises EvaluationError on every rank unless each image was counted exactly once: by count, and by an order-free
    digest of the keys against the index.
    """
    place = mesh.place
    names_seen = place.column == 0 or config.data.share_decoding  # else columns of a replica load the same images
    faults: list[Fault] = []
    mean_3SS = torch.from_numpy(mean_pixels(config.data, statistics)).to(device)
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, top-1, top-5, decoded: of the model group
    seen = torch.zeros(2, dtype=torch.int64)  # images and the sum of their keys' digests: what this rank loaded
    batches = together(  # a node may be unable to make its cache
        lambda: evaluation_batches(index, config, share_of(config, mesh), pin_memory=device.type == "cuda")
    )
    for batch in batches:
        here = whole_on(batch, config, mesh, device)
        loss_B, ahead_B, weight_B = forward(here.inputs(mean_3SS), here.label_b, here.weight_b, here.position_b)
        sums += batch_sums(loss_B, ahead_B, weight_B)
        if names_seen:
            seen += torch.tensor([len(batch.keys), _signed(sum(map(key_digest, batch.keys)))])
            faults += batch.faults
        after_each()
    if place.model_rank > 0:
        sums.zero_()  # every rank of a model group has the same sums
    dist.all_reduce(sums)
    dist.all_reduce(seen)
    loss, top1, top5, decoded = sums.tolist()
    images, digest = int(seen[0]), int(seen[1]) % 2**64
    if images != len(index) or digest != index.keys_digest:
        raise EvaluationError(
            f"{images} images with key digest {digest:016x} were counted, expected {len(index)} with "
            f"{index.keys_digest:016x}: no figure is given; check the set with `dist-alexnet shards index`"
        )
    return Evaluation(
        loss=loss / max(1.0, decoded),
        top1=top1 / images,
        top5=top5 / images,
        images=images,
        bad_images=images - round(decoded),
        keys_digest=f"{digest:016x}",
        faults=_of_all_ranks(faults) if round(decoded) < images else (),
    )


def _of_all_ranks(faults: list[Fault]) -> tuple[Fault, ...]:
    found = [fault for part in on_every_rank(lambda: faults) for fault in part]
    return tuple(sorted(found, key=lambda fault: fault.position))


def _signed(word: int) -> int:
    """A sum modulo 2**64 as the int64 with its bits: sums of int64 wrap around, so they stay sums modulo 2**64."""
    word %= 2**64
    return word - 2**64 if word >= 2**63 else word


def agreed_decoder(config: Config, device: torch.device) -> Config:
    """The config as the ranks can decode: where one of them has no nvJPEG none uses it. Says so. All ranks call it."""
    if config.data.decoder != "nvjpeg":
        return config
    whys = [why for why in on_every_rank(lambda: missing(device)) if why]
    if not whys:
        return config
    say_on_first_rank(f"data.decoder is nvjpeg, but {whys[0]}: all ranks decode on the CPU, as with auto")
    return config.model_copy(update={"data": config.data.model_copy(update={"decoder": "auto"})})


def agreed_arithmetic(config: Config, device: torch.device) -> Arithmetic:
    """How the network is computed here. All ranks call it. Raises LayoutError as `agreed_compute_dtype`."""
    sent = {"full": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.parallel.exchange]
    return Arithmetic(
        agreed_compute_dtype(config, device), sent, config.parallel.channels_last, config.parallel.overlap
    )


def agreed_compute_dtype(config: Config, device: torch.device) -> torch.dtype | None:
    """The dtype of convolutions and products, None where they stay as the weights are. All ranks call it.

    auto: bf16 where every rank's GPU has it. Raises LayoutError where it is asked for and some GPU has it not.
    """
    able = all(on_every_rank(lambda: device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)))
    if config.precision == "bf16" and not able:
        raise LayoutError("precision is bf16, but not every GPU here has it: set it to fp32, or to auto")
    if config.precision == "fp16":
        return torch.float16
    chosen = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda" and able)
    return torch.bfloat16 if chosen else None
