"""The story of `predict`: what a network makes of single pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from dist_alexnet.config import Data
from dist_alexnet.data.batch import Batch
from dist_alexnet.data.decode import DecodeFault
from dist_alexnet.data.loader import decode_views
from dist_alexnet.data.statistics import mean_pixels
from dist_alexnet.data.view import evaluation_views
from dist_alexnet.environment import read_world
from dist_alexnet.parallel.agree import together
from dist_alexnet.parallel.layout import Layout
from dist_alexnet.parallel.mesh import make_mesh
from dist_alexnet.parallel.start import distributed
from dist_alexnet.trained import averaged, load_trained
from shards import storage
from shards.errors import InputError
from shards.storage import shown

CENTRE = {1: 0, 10: 4}  # its row among a picture's views


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of N pictures and C classes."""

    checkpoint: str
    step: int
    views: int
    pictures: tuple[str, ...]
    classes: tuple[str, ...] | None
    words: tuple[str, ...] | None
    probability_NC: NDArray[np.float64]
    centre_NSS3: NDArray[np.uint8]  # the crop that the network sees, or sees first

    def likeliest(self, picture: int, top: int) -> list[tuple[int, float]]:
        """(class, probability) of the `top` likeliest classes; of equal ones the lower first."""
        row_C = self.probability_NC[picture]
        order = np.argsort(-row_C, kind="stable")[:top].tolist()
        return [(number, float(row_C[number])) for number in order]

    def name(self, number: int) -> str:
        """Of a class: its number where no name is known."""
        return str(number) if self.classes is None or number >= len(self.classes) else self.classes[number]

    def meaning(self, number: int) -> str | None:
        """Of a class, in words, where the training set had them."""
        return None if self.words is None or number >= len(self.words) else self.words[number]

    def as_dict(self, top: int) -> dict[str, Any]:
        """Plain values."""
        return {
            "checkpoint": self.checkpoint,
            "step": self.step,
            "views": self.views,
            "pictures": [
                {
                    "picture": picture,
                    "likeliest": [
                        {
                            "class": number,
                            "name": self.name(number),
                            "words": self.meaning(number),
                            "probability": probability,
                        }
                        for number, probability in self.likeliest(row, top)
                    ],
                }
                for row, picture in enumerate(self.pictures)
            ],
        }


def predict(checkpoint: str, pictures: Sequence[str], views: int = 1) -> Predictions:
    """Ask the network of a checkpoint (path or URL of a step or a run) about files of pictures (paths or URLs).

    views: 1, or 10 whose probabilities are averaged. Raises InputError for a file that is no picture, and what
    `load_trained` raises.
    """
    with distributed(read_world()) as device:
        for picture in pictures:
            together(partial(_check_there, picture))
        trained = load_trained(checkpoint, make_mesh(Layout(data=dist.get_world_size()), device.type), device)
        data = trained.config.data
        mean_3SS = torch.from_numpy(mean_pixels(data, trained.statistics)).to(device)
        probabilities, centres = [], []
        for picture in pictures:
            batch = together(partial(_batch, picture, data, views))
            with torch.no_grad():
                here = batch.to(device)
                logits_vC, _ = trained.module.logits(here.inputs(mean_3SS), here.position_b, here.position_b)
                probabilities.append(averaged(logits_vC, views).cpu().numpy())
            centres.append(batch.pixels_b3SS[CENTRE[views]].permute(1, 2, 0).numpy())
        return Predictions(
            str(trained.found.folder),
            trained.found.commit.step,
            views,
            tuple(shown(picture) for picture in pictures),
            trained.classes,
            trained.words,
            np.concatenate(probabilities),
            np.stack(centres),
        )


def lines(predictions: Predictions, top: int) -> list[str]:
    """For people: a block a picture."""
    said = [] if predictions.classes is not None else ["the checkpoint names no classes: these are their numbers"]
    for row, picture in enumerate(predictions.pictures):
        said.append(picture)
        said += [
            f"  {part:.4f}  {predictions.name(number)} {predictions.meaning(number) or ''}".rstrip()
            for number, part in predictions.likeliest(row, top)
        ]
    return said


def draw(predictions: Predictions, to: Path) -> None:
    """The pictures with bars of their five likeliest classes, as a PNG."""
    from dist_alexnet.pictures.predictions import draw_predictions

    rows = range(len(predictions.pictures))

    def label(number: int) -> str:  # of a class's words the first, as they are synonyms
        return (predictions.meaning(number) or predictions.name(number)).split(",")[0]

    draw_predictions(
        list(predictions.centre_NSS3),
        [Path(picture).name for picture in predictions.pictures],
        [[(label(number), part) for number, part in predictions.likeliest(row, 5)] for row in rows],
        [None for _ in rows],
        to,
    )


def _check_there(picture: str) -> None:
    path = storage.local_path(picture)
    if not (storage.exists(picture) if path is None else path.is_file()):
        raise InputError(f"there is no picture {shown(picture)}: check the path")


def _batch(picture: str, data: Data, views: int) -> Batch:
    """All views of one picture. Raises InputError for what does not decode."""
    seen = evaluation_views(1, data, views)
    pixels = np.empty((views, 3, data.image_size, data.image_size), dtype=np.uint8)
    try:
        decode_views(storage.read_all(picture), seen, 0, data, out=pixels)
    except DecodeFault as fault:
        raise InputError(f"the picture {shown(picture)} does not decode ({fault}): leave it out") from fault
    return Batch(
        pixels_b3SS=torch.from_numpy(pixels),
        mirror_b=torch.from_numpy(seen.mirror),
        label_b=torch.zeros(views, dtype=torch.int64),
        weight_b=torch.ones(views),
        position_b=torch.zeros(views, dtype=torch.int64),
        noise_b3=torch.from_numpy(seen.noise),
        divisor_b=torch.from_numpy(seen.divisor),
        keys=(picture,),
        faults=(),
    )
