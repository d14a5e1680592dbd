"""The story of an evaluation: every image of the validation set once, on any number of ranks, or no figure at all."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from dist_alexnet.config import Config
from dist_alexnet.data.batch import Batch, Fault
from dist_alexnet.data.loader import Share, evaluation_batches
from dist_alexnet.data.statistics import Statistics, mean_pixels
from dist_alexnet.errors import EvaluationError
from dist_alexnet.parallel.agree import on_every_rank, together
from dist_alexnet.parallel.collectives import gather_over_columns
from dist_alexnet.parallel.mesh import Mesh
from dist_alexnet.track.meter import batch_sums
from shards.index import ShardIndex, key_digest

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
    after_each: Callable[[Batch], None] = lambda batch: None,
    views: int = 1,
) -> Evaluation:
    """Loss, top-1 and top-5 of `forward` (in evaluation mode) over the whole index; all ranks get the same figures.

    after_each: called equally often on all ranks, with what this rank loaded; what it raises ends the evaluation.
    views: 1, or 10, where `forward` gets ten rows of each image, next to each other, and answers with one.

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
        lambda: evaluation_batches(index, config, share_of(config, mesh), device.type == "cuda", views)
    )
    with closing(batches):  # its workers end here, also where a stop was asked for
        for batch in batches:
            here = whole_on(batch, config, mesh, device)
            loss_B, ahead_B, weight_B = forward(here.inputs(mean_3SS), here.label_b, here.weight_b, here.position_b)
            sums += batch_sums(loss_B, ahead_B, weight_B)
            if names_seen:
                seen += torch.tensor([len(batch.keys), _signed(sum(map(key_digest, batch.keys)))])
                faults += batch.faults
            after_each(batch)
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
