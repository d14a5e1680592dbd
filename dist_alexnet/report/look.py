"""What a trained network makes of some pictures of a set: its likeliest classes, and the last hidden layer."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dist_alexnet.data.chosen import as_evaluated, spread_over
from dist_alexnet.data.statistics import mean_pixels
from dist_alexnet.judging.labels import matched_classes
from dist_alexnet.network.tap import tapped
from dist_alexnet.trained import Trained
from shards.index import ShardIndex

AT_ONCE = 64  # pictures in one forward


@dataclass(frozen=True)
class Looked:
    """At N pictures of a set, in its order. Of those that did not decode (bad_N) nothing else means anything."""

    index: ShardIndex
    ids_N: NDArray[np.int64]  # numbers in the index
    keys: tuple[str, ...]
    true_N: NDArray[np.int64]
    bad_N: NDArray[np.bool_]
    logits_NC: NDArray[np.float32]
    features_ND: NDArray[np.float32]  # of the last hidden layer


@torch.no_grad()
def look(trained: Trained, index: ShardIndex, images: int, device: torch.device) -> Looked:
    """At up to `images` pictures (0: all), spread evenly over the set.

    Raises StorageFault, and InputError for a set with a class that the network does not have.
    """
    classes, name = trained.config.network.num_classes, f"the checkpoint {trained.found.folder}"
    matched = matched_classes(index, trained.classes, classes, name)
    ids = spread_over(index, images or len(index))
    mean_3SS = torch.from_numpy(mean_pixels(trained.config.data, trained.statistics)).to(device)
    batches, logits, features = [], [], []
    with tapped(trained.module) as tap:
        for begin in range(0, len(ids), AT_ONCE):
            batch = as_evaluated(index, trained.config, ids[begin : begin + AT_ONCE])
            here = batch.to(device)
            trained.module(here.inputs(mean_3SS), here.label_b, here.weight_b, here.position_b)
            logits.append(tap.logits_BC.float().cpu().numpy())
            features.append(tap.features_BD.float().cpu().numpy())
            batches.append((batch.keys, batch.label_b.numpy(), batch.weight_b.numpy() == 0))
    keys, labels, bad = zip(*batches, strict=True)
    return Looked(
        index,
        ids,
        tuple(key for some in keys for key in some),
        matched.number_of[np.concatenate(labels)],
        np.concatenate(bad),
        np.concatenate(logits),
        np.concatenate(features),
    )
