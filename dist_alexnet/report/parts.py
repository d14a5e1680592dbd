"""The parts of the page that need a network: each draws its PNG for the run folder, and gives what the page shows.

A part is a mapping of plain values for the template.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dist_alexnet.data.chosen import as_evaluated, spread_over
from dist_alexnet.guard.divergence import DivergenceGuard
from dist_alexnet.judging.figures import figures_of, one_right_class
from dist_alexnet.pictures.batch import draw_batch
from dist_alexnet.pictures.canvas import Pixels, data_url, jpeg, png
from dist_alexnet.pictures.confusion import (
    MOST_CLASSES,
    WITH_COUNTS,
    WITH_NAMES,
    confusion,
    confusion_svg,
    draw_confusion,
    most_confused,
)
from dist_alexnet.pictures.filters import draw_filters, filter_tiles, specialisation, words_of
from dist_alexnet.pictures.neighbours import Neighbours, draw_neighbours, nearest
from dist_alexnet.pictures.predictions import class_name, draw_predictions, likeliest_classes
from dist_alexnet.report.look import Looked
from dist_alexnet.trained import Trained
from dist_alexnet.training_pictures import first_of_batch
from shards.index import ShardIndex

OF_A_BATCH, OF_EACH_KIND, ASKED = 24, 6, 5  # pictures: of a batch; right, and wrong; with neighbours
MOST_ROWS = 50  # of the table of classes

Part = Mapping[str, Any]


def filters_part(trained: Trained, folder: Path) -> Part:
    network = trained.module.network
    filters_F3KK = trained.module.values_of(network.tensors[0]).detach().float().cpu().numpy()
    draw_filters(filters_F3KK, network.columns, folder / "report-filters.png")
    found = specialisation(filters_F3KK, network.columns)
    urls = [data_url(png(tile)) for tile in filter_tiles(filters_F3KK)]
    each = len(urls) // network.columns
    return {
        "columns": [
            {"words": words_of(found, column), "urls": urls[column * each : (column + 1) * each]}
            for column in range(network.columns)
        ],
        "difference": found.difference,
    }


def batch_part(trained: Trained, train: ShardIndex, folder: Path) -> Part:
    config, commit = trained.config, trained.found.commit
    guard = DivergenceGuard(config.divergence)
    guard.restore(commit.state.get("divergence"))
    read = int(guard.data_steps(np.array([max(0, commit.step - 1)]), config.data.batch_size)[0])
    images = first_of_batch(train, config, trained.statistics, read, OF_A_BATCH)
    draw_batch(images, commit.step, folder / "report-batch.png")
    return {"step": commit.step, "urls": [data_url(jpeg(image)) for image in images]}


def predictions_part(trained: Trained, val: Looked, names: Sequence[str] | None, folder: Path) -> Part:
    """Some that are right and some that are wrong, each kind spread over the set."""
    right_N = val.logits_NC.argmax(1) == val.true_N
    kinds = [_spread(np.flatnonzero(chosen & ~val.bad_N), OF_EACH_KIND) for chosen in (right_N, ~right_N)]
    which = np.concatenate(kinds)
    if not len(which):
        return {"cards": []}
    images = _pictures(val, trained, which)
    likeliest = [
        [(class_name(names, number), part) for number, part in row] for row in likeliest_classes(val.logits_NC[which])
    ]
    true = [class_name(names, int(val.true_N[place])) for place in which]
    keys = [val.keys[place] for place in which]
    draw_predictions(images, keys, likeliest, true, folder / "report-predictions.png")
    rows = zip(images, keys, true, likeliest, right_N[which].tolist(), strict=True)
    return {
        "cards": [
            {"url": data_url(jpeg(image)), "key": key, "true": name, "likeliest": some, "right": right}
            for image, key, name, some, right in rows
        ]
    }


def neighbours_part(trained: Trained, val: Looked, known: Looked, names: Sequence[str] | None, folder: Path) -> Part:
    """known: pictures of the training set."""
    asked = _spread(np.flatnonzero(~val.bad_N), ASKED)
    there = np.flatnonzero(~known.bad_N)
    which_Qk, distance_Qk = nearest(val.features_ND[asked], known.features_ND[there])
    rows = []
    for place, which_k, distance_k in zip(asked.tolist(), there[which_Qk], distance_Qk, strict=True):
        found = tuple(_pictures(known, trained, which_k))
        rows.append(
            Neighbours(
                picture=_pictures(val, trained, np.array([place]))[0],
                name=class_name(names, int(val.true_N[place])),
                nearest=found,
                names=tuple(class_name(names, int(known.true_N[one])) for one in which_k),
                distances=tuple(distance_k.tolist()),
            )
        )
    draw_neighbours(rows, folder / "report-neighbours.png")
    return {
        "features": val.features_ND.shape[1],
        "known": len(there),
        "rows": [
            {
                "url": data_url(jpeg(row.picture)),
                "name": row.name,
                "nearest": [
                    {"url": data_url(jpeg(image)), "name": name, "distance": distance, "same": name == row.name}
                    for image, name, distance in zip(row.nearest, row.names, row.distances, strict=True)
                ],
            }
            for row in rows
        ],
    }


def confusion_part(val: Looked, names: Sequence[str] | None, folder: Path) -> Part:
    good = ~val.bad_N
    classes = val.logits_NC.shape[1]
    counts_CC = confusion(val.true_N[good], val.logits_NC[good].argmax(1), classes)
    drawn: str | None = None
    if classes <= MOST_CLASSES:
        labels = [class_name(names, number) for number in range(classes)]
        draw_confusion(counts_CC, labels, folder / "report-confusion.png")
        drawn = Markup(confusion_svg(counts_CC, labels))
    pairs = [
        (class_name(names, one.true), class_name(names, one.taken_for), one.images, one.of)
        for one in most_confused(counts_CC)
    ]
    small, named = classes <= WITH_COUNTS, classes <= WITH_NAMES
    return {"svg": drawn, "classes": classes, "pairs": pairs, "small": small, "named": named}


def classes_part(val: Looked, names: Sequence[str] | None) -> Part:
    """Classes by their top-1 accuracy, rising. Of many the worst and the best."""
    found = figures_of(val.logits_NC, val.bad_N, one_right_class(val.true_N), loss=0.0)
    rows = sorted(found.per_class, key=lambda one: (one.top1_correct / one.images, one.number))
    left_out = max(0, len(rows) - MOST_ROWS)
    if left_out:
        rows = rows[: MOST_ROWS // 2] + rows[-MOST_ROWS // 2 :]
    return {
        "left_out": left_out,
        "rows": [
            {
                "name": class_name(names, one.number),
                "images": one.images,
                "top1": one.top1_correct / one.images,
                "top5": one.top5_correct / one.images,
                "taken_for": None if one.wrong_answer is None else class_name(names, one.wrong_answer),
            }
            for one in rows
        ],
    }


def _pictures(looked: Looked, trained: Trained, which: NDArray[np.int64]) -> list[Pixels]:
    """The pictures at these places of `looked`, as an evaluation cuts them: uint8 (S, S, 3) each."""
    batch = as_evaluated(looked.index, trained.config, looked.ids_N[which])
    return list(batch.pixels_b3SS.numpy().transpose(0, 2, 3, 1))


def _spread(places_M: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Up to `count` of the places, evenly over all of them."""
    return places_M[spread_over(places_M, count)]
