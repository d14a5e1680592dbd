"""The story of `evaluate`: what one network, or the mean of several, makes of a set; every image once, or no figure.

Each network sees the set in a pass of its own, with its own pixels, over all ranks. Its answers come together on rank
0, in the order of the index, where they are averaged and counted: no figure depends on the number of ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch.distributed as dist

from dist_alexnet.checkpoint.commit import Found
from dist_alexnet.data.batch import Fault
from dist_alexnet.environment import read_world
from dist_alexnet.judging.asking import Asked, ask
from dist_alexnet.judging.averaging import Mean, part_weights
from dist_alexnet.judging.figures import Figures, figures_of, mean_loss, one_right_class
from dist_alexnet.judging.labels import Labels, Matched, matched_classes, read_labels
from dist_alexnet.judging.probabilities import SUFFIX, check_new, check_same_set, read_answers, write_answers
from dist_alexnet.parallel.agree import on_first_rank, together
from dist_alexnet.parallel.layout import Layout
from dist_alexnet.parallel.mesh import make_mesh
from dist_alexnet.parallel.start import distributed
from dist_alexnet.trained import classes_of, declared, find_trained
from shards.errors import InputError
from shards.index import ShardIndex, read_index
from shards.reader import ShardReader
from shards.storage import shown


@dataclass(frozen=True)
class Judgement:
    """What `judge` gives, the same on every rank."""

    figures: Figures
    keys_digest: str  # hex; of the index, and of what was seen
    faults: tuple[Fault, ...]  # pictures that did not decode; `position` is the number in the index
    shards: dict[str, Any]  # the set: its URL, split, digest
    views: int
    inputs: tuple[dict[str, Any], ...]  # what was averaged: checkpoint, step, views, weight, and figures of its own
    labels: str | None  # the file of right classes, where it was not the set's own
    classes_matched: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, the figures among them."""
        values = asdict(self)
        del values["figures"]
        return {**self.figures.as_dict(), **values}


def judge(
    parts: Sequence[str],
    shards: str,
    views: int = 1,
    weights: Sequence[float] | None = None,
    labels: str | None = None,
    probabilities: str | None = None,
    told: Callable[[Judgement], None] = lambda judgement: None,
) -> Judgement:
    """Evaluate the mean of `parts` on a set of shards, over all ranks.

    parts: checkpoints (path or URL of a step or a run), or files that `probabilities` once named. views: 1 or 10, of
    each network that is asked now. weights: one a part. labels: URL of right classes. probabilities: URL of a new file
    for the mean. told: is called on rank 0 before that is written: figures of hours are not lost because a disk is
    full. Raises InputErrors, EvaluationError, StorageFault, on every rank alike.
    """
    shares = part_weights(weights, len(parts))
    with distributed(read_world()) as device:
        index = together(lambda: read_index(shards))
        if probabilities is not None:
            on_first_rank(lambda: check_new(probabilities))
        found = {part: find_trained(part) for part in parts if not part.endswith(SUFFIX)}
        known = on_first_rank(lambda: _agreed_classes(parts, found, index))
        right = None if labels is None else on_first_rank(lambda: _labels_for(labels, index, known))
        mesh, mean, alone = make_mesh(Layout(data=dist.get_world_size()), device.type), Mean(), None
        for part, weight in zip(parts, shares, strict=True):
            if part not in found:
                on_first_rank(partial(_add_file, mean, part, weight, index, known))
                continue
            # Alone and by the centre, a network's answers are ranked as it gives them: by its fp32 logits.
            asked = ask(found[part], index, known.matched, mesh, device, views, logits=len(parts) == views == 1)
            alone = asked if asked.logits_NC is not None else None
            on_first_rank(partial(_add, mean, asked, weight))

        def judged() -> Judgement:
            judgement = Judgement(
                _figures(mean, alone, right, known.classes),
                f"{index.keys_digest:016x}",
                tuple(sorted(mean.faults.values(), key=lambda fault: fault.position)),
                {"url": shown(shards), "split": index.split, "digest": index.digest, "images": len(index)},
                views,
                tuple(mean.inputs),
                None if labels is None else shown(labels),
                known.matched.how,
            )
            told(judgement)
            if probabilities is not None:
                check_new(probabilities)  # another may have written it in the meantime
                write_answers(probabilities, mean.as_answers())
            return judgement

        return on_first_rank(judged)


@dataclass(frozen=True, eq=False)
class _Known:
    """The classes on which all parts agree, and the set's by their numbers."""

    classes: tuple[str, ...] | None
    num_classes: int
    matched: Matched


def _agreed_classes(parts: Sequence[str], found: dict[str, Found], index: ShardIndex) -> _Known:
    """Before the long work. Raises InputError where parts have other classes than each other, or than the set."""
    seen = []
    for part in parts:
        if part in found:
            config, _ = declared(found[part])
            seen.append((shown(part), classes_of(found[part]), config.network.num_classes))
        else:
            answers = read_answers(part)
            seen.append((shown(part), answers.classes, answers.probability_NC.shape[1]))
    first, classes, num_classes = max(seen, key=lambda one: len(one[1] or ()))  # some may name fewer, or none
    for part, others, count in seen:
        if count != num_classes:
            raise InputError(f"{part} knows {count} classes and {first} {num_classes}: average networks of the same")
        for number, (here, there) in enumerate(zip(others or (), classes or (), strict=False)):
            if here != there:
                raise InputError(
                    f"class {number} is {here!r} in {part} and {there!r} in {first}: average networks of the same "
                    "classes in the same order"
                )
    return _Known(classes, num_classes, matched_classes(index, classes, num_classes, first))


def _labels_for(url: str, index: ShardIndex, known: _Known) -> Labels:
    labels = read_labels(url, len(index), known.classes, known.num_classes)
    labels.of(ShardReader(index).key(0))  # a set whose keys have no numbers is refused now, and not after hours
    return labels


def _add(mean: Mean, asked: Asked, weight: float) -> None:
    """A network that was asked just now."""
    assert asked.answers is not None
    evaluation = asked.evaluation
    own = {"loss": evaluation.loss, "top1": evaluation.top1, "top5": evaluation.top5}
    mean.add(asked.answers, weight, {**asked.answers.made_of[0], **own}, evaluation.faults)


def _add_file(mean: Mean, url: str, weight: float, index: ShardIndex, known: _Known) -> None:
    """What networks said before."""
    answers = read_answers(url)
    check_same_set(url, answers, index, known.matched.number_of)
    bad = np.flatnonzero(answers.bad).tolist()
    faults = [Fault(row, answers.keys[row], shown(url), "it did not decode when this file was made") for row in bad]
    mean.add(answers, weight, {"probabilities": shown(url), "made_of": answers.made_of}, faults)


def _figures(mean: Mean, alone: Asked | None, right: Labels | None, names: Sequence[str] | None) -> Figures:
    """On rank 0. Ties fall to the lower class: of fp32 logits of one network alone, of fp64 probabilities of a mean."""
    total_NC, bad_N = mean.total()
    assert mean.answers is not None
    truth = one_right_class(mean.answers.label_N) if right is None else right.truth(mean.answers.keys)
    if alone is None or alone.logits_NC is None:
        return figures_of(total_NC, bad_N, truth, mean_loss(total_NC, bad_N, truth), names)
    loss = alone.evaluation.loss if right is None else mean_loss(total_NC, bad_N, truth)
    return figures_of(alone.logits_NC, bad_N, truth, loss, names)
