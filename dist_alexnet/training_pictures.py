"""Pictures that a run makes of itself while it trains: filters, a batch, predictions; the same on every layout.

All ranks bring together what is to be seen, rank 0 draws. Nothing that goes wrong with a drawing stops a run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dist_alexnet.config import Config
from dist_alexnet.data.chosen import as_evaluated, as_trained_on, spread_over
from dist_alexnet.data.statistics import Statistics, mean_pixels
from dist_alexnet.engine import Engine
from dist_alexnet.job import Job
from dist_alexnet.network.build import ColumnNetwork
from dist_alexnet.network.tap import tapped
from dist_alexnet.parallel.agree import on_first_rank
from dist_alexnet.parallel.layout import LogicalTensor
from dist_alexnet.pictures.batch import draw_batch, shown_inputs
from dist_alexnet.pictures.canvas import FOLDER
from dist_alexnet.pictures.filters import draw_filters
from dist_alexnet.pictures.predictions import class_name, draw_predictions, likeliest_classes
from dist_alexnet.track.tracker import Tracker
from shards.index import ShardIndex
from shards.order import batch_positions

OF_A_BATCH, PREDICTED = 16, 8  # pictures


@dataclass(frozen=True)
class Chosen:
    """The validation pictures that are predicted each time: rank 0 has read them, all ranks have them."""

    pixels_b3SS: NDArray[np.uint8]
    keys: tuple[str, ...]
    labels: tuple[int, ...]


class TrainingPictures:
    """Of one start of a run, on every rank."""

    def __init__(self, config: Config, job: Job, engine: Engine, module: ColumnNetwork, tracker: Tracker) -> None:
        self._config, self._job, self._tracker = config, job, tracker
        self._engine, self._module = engine, module
        self._mean_3SS = mean_pixels(config.data, job.statistics)
        self._chosen: Chosen | None = None

    def draw(self, step: int, data_step: int, moved: Callable[[], None] = lambda: None) -> None:
        """Write <run folder>/pictures/step-XXXXXXXX-*.png, and show them to the tracker. All ranks call it, between
        steps. data_step: which global batch the step has read, from 0. moved: told between what may take long, where
        storage is asked again; on rank 0 more often than on the others.
        """
        if self._job.val is not None and self._chosen is None:
            self._chosen = on_first_rank(self._choose)
            moved()
        device = self._module.pixel_std_3.device
        filters = _whole(self._engine, self._job.network.tensors[0], device)  # of the first layer with weights
        logits_bC = None if self._chosen is None else self._logits(self._chosen, device)
        if dist.get_rank() > 0:
            return
        drawn: dict[str, Path] = {}
        batch = partial(first_of_batch, self._job.train, self._config, self._job.statistics, data_step, OF_A_BATCH)
        self._try(drawn, step, "filters", lambda to: draw_filters(filters.numpy(), self._job.network.columns, to))
        self._try(drawn, step, "batch", lambda to: draw_batch(batch(), step, to))
        if logits_bC is not None:
            self._try(drawn, step, "predictions", lambda to: self._draw_predictions(logits_bC.numpy(), to))
        moved()
        self._tracker.pictures(step, drawn)

    def _try(self, drawn: dict[str, Path], step: int, name: str, draw: Callable[[Path], None]) -> None:
        to = self._config.run_folder / FOLDER / f"step-{step:08d}-{name}.png"
        try:
            draw(to)
            drawn[name] = to
        except Exception as error:  # a full disk, a shard out of reach, a library's whim: none is worth a run
            self._tracker.message(f"no picture of the {name} at step {step}: {type(error).__name__}: {error}")

    def _choose(self) -> Chosen | None:
        """What rank 0 reads, once; None where it cannot."""
        val = self._job.val
        assert val is not None
        try:
            batch = as_evaluated(val, self._config, spread_over(val, PREDICTED))
        except Exception as error:
            self._tracker.message(f"no pictures of predictions: {type(error).__name__}: {error}")
            return None
        return Chosen(batch.pixels_b3SS.numpy(), batch.keys, tuple(batch.label_b.tolist()))

    @torch.no_grad()
    def _logits(self, chosen: Chosen, device: torch.device) -> Tensor:
        """Of the chosen pictures, on the CPU: each replica of each model group computes all of them."""
        x_b3SS = torch.from_numpy(chosen.pixels_b3SS).to(device).float() - torch.from_numpy(self._mean_3SS).to(device)
        label_b = torch.tensor(chosen.labels, device=device)
        position_b = torch.arange(len(label_b), device=device)
        self._engine.train(False)
        try:
            with tapped(self._module) as tap:
                self._engine.forward(x_b3SS, label_b, torch.ones(len(label_b), device=device), position_b)
        finally:
            self._engine.train()
        return tap.logits_BC[: len(label_b)].float().cpu()  # those of replica 0

    def _draw_predictions(self, logits_bC: NDArray[np.float32], to: Path) -> None:
        chosen, name = self._chosen, partial(class_name, self._job.train.classes)
        assert chosen is not None
        draw_predictions(
            list(chosen.pixels_b3SS.transpose(0, 2, 3, 1)),
            chosen.keys,
            [[(name(number), part) for number, part in row] for row in likeliest_classes(logits_bC)],
            [name(label) for label in chosen.labels],
            to,
        )


def first_of_batch(
    train: ShardIndex, config: Config, statistics: Statistics, data_step: int, count: int
) -> list[NDArray[np.uint8]]:
    """The first pictures of a global batch as the network sees them, in the order that no layout changes."""
    positions = batch_positions(data_step, config.data.batch_size, config.data.lane_count)[:count]
    batch, mean_3SS = as_trained_on(train, config, positions, statistics), mean_pixels(config.data, statistics)
    return shown_inputs(batch.inputs(torch.from_numpy(mean_3SS)).numpy(), mean_3SS)


def _whole(engine: Engine, tensor: LogicalTensor, device: torch.device) -> Tensor:
    """A weight as it is, whole, on the CPU of every rank: each element is added up with zeros. All ranks call it."""
    flat = torch.zeros(tensor.elements, device=device)
    for part in engine.fragments_to_save():
        if part.name == tensor.name and part.kind == "weight":
            flat[part.offset : part.offset + part.values.numel()] = part.values
    dist.all_reduce(flat)
    return flat.cpu().view(tensor.shape)
