"""Checkpoints of drawn weights, whose answers differ from picture to picture; and the same answers in plain float64."""

import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dist_alexnet.checkpoint import store
from dist_alexnet.config import config_from
from dist_alexnet.network.spec import load_spec
from dist_alexnet.network.weights.state import Weights
from dist_alexnet.transfer import _fragments
from shards.index import read_index
from shards.reader import ShardReader
from tests.network.plain import FORWARD
from tests.network.weights.drawn import drawn_state
from tests.ranks.pictures import Noise


@dataclass(frozen=True)
class Made:
    """A checkpoint and its weights."""

    folder: str
    weights: Weights
    image_size: int
    resize: int


def make(
    folder: Path,
    seed: int,
    preset: str = "alexnet-2012",
    classes: tuple[str, ...] | None = None,
    num_classes: int = 5,
    image_size: int = 64,
    resize: int = 72,
    words: tuple[str, ...] | None = None,
    **data: object,
) -> Made:
    """A checkpoint as training leaves it, without momentum. Needs a process group."""
    pixels = {"image_size": image_size, "resize": resize, "mean": [120.5, 119.0, 101.25], **data}
    weights = Weights(preset, load_spec(preset), num_classes, {}, pixels, 0.125)
    weights = replace(weights, tensors=drawn_state(weights.network, seed))
    _balance(weights)
    config = config_from(
        {
            "network": {"name": preset, "num_classes": num_classes, "width": 0.125},
            "data": {**pixels, "workers": 0},
            "evaluate": {"batch_size": 10},
        },
        "the test",
    )
    state = {
        "config": config.model_dump(mode="json"),
        "network": weights.spec.model_dump(mode="json"),
        "classes": None if classes is None else list(classes),
        "class_words": None if words is None else list(words),
    }
    fragments = _fragments(weights.network, weights.tensors)
    store.save(folder, fragments, step=7, generation=1, layout={}, versions=store.versions(), state=state)
    return Made(str(folder), weights, image_size, resize)


def _balance(weights: Weights) -> None:
    """Shift and scale the last layer so that the answers to noise differ: each class is likeliest now and then."""
    side, mean = weights.pixels["image_size"], torch.tensor([120.5, 119.0, 101.25])
    noise = [Image.open(io.BytesIO(Noise().picture("val", number))) for number in range(37)]
    x_B3SS = torch.stack([torch.from_numpy(np.array(one)[:side, :side]).float() - mean for one in noise])
    logits_BC = FORWARD[weights.name](weights.tensors, x_B3SS.permute(0, 3, 1, 2), 0.5, 0.5)
    weights.tensors["fc8.weight"] *= (2 / logits_BC.std(0))[:, None]
    weights.tensors["fc8.bias"] -= logits_BC.mean(0)
    weights.tensors["fc8.bias"] *= 2 / logits_BC.std(0)


def answers_in_float64(
    made: Made, index_url: str, views: int, mean_SS3: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Softmax averaged over explicitly cut crops, (N, C), a row of zeros where a picture is torn: nothing of ours.

    The pictures are squares of `resize` pixels, so that each crop is cut out and never resampled.
    """
    index = read_index(index_url)
    parameters = {name: values.double() for name, values in made.weights.tensors.items()}
    mean = np.array(made.weights.pixels["mean"], dtype=np.float64) if mean_SS3 is None else mean_SS3
    far, side, rows = made.resize - made.image_size, made.image_size, []
    corners = [(far // 2, far // 2)] if views == 1 else [(0, 0), (far, 0), (0, far), (far, far), (far // 2, far // 2)]
    for sample in ShardReader(index).read(range(len(index))):
        try:
            picture = np.asarray(Image.open(io.BytesIO(sample.jpeg)).convert("RGB")).astype(np.float64)
        except OSError:
            rows.append(np.zeros(made.weights.num_classes))
            continue
        assert picture.shape == (made.resize, made.resize, 3)
        crops = [picture[y : y + side, x : x + side] for x, y in corners]
        crops += [crop[:, ::-1] for crop in crops] if views == 10 else []
        x_v3SS = torch.from_numpy(np.stack([crop - mean for crop in crops]).transpose(0, 3, 1, 2).copy())
        logits_vC = FORWARD[made.weights.name](parameters, x_v3SS, 0.5, 0.5).numpy()
        exp_vC = np.exp(logits_vC - logits_vC.max(1, keepdims=True))
        rows.append((exp_vC / exp_vC.sum(1, keepdims=True)).mean(0))
    return np.stack(rows)
