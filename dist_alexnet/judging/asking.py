"""One network is asked about every image of a set, over all ranks; its answers come together on rank 0."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from dist_alexnet.checkpoint.commit import Found
from dist_alexnet.data.batch import Batch
from dist_alexnet.evaluate import Evaluation, evaluate
from dist_alexnet.judging.labels import Matched
from dist_alexnet.judging.probabilities import Answers
from dist_alexnet.parallel.collectives import LEAST_PROBABILITY, cross_entropy
from dist_alexnet.parallel.mesh import Mesh
from dist_alexnet.trained import Trained, averaged, classes_of, load_found
from shards.index import ShardIndex

ROWS_AT_A_TIME = 4096


@dataclass(frozen=True, eq=False)
class Asked:
    """What came of it: the figures on every rank, the rest on rank 0."""

    evaluation: Evaluation
    answers: Answers | None
    logits_NC: NDArray[np.float32] | None  # where they were asked for


def ask(
    found: Found, index: ShardIndex, matched: Matched, mesh: Mesh, device: torch.device, views: int, logits: bool
) -> Asked:
    """One pass over the set. matched: the network's number of each class of the set. logits: keep these, too (views 1).

    All ranks call it. Raises as `load_trained` and `evaluate` do.
    """
    trained = load_found(found, mesh, device)
    asking = _Asking(trained, mesh, torch.from_numpy(matched.number_of).to(device), views, logits)
    evaluation = evaluate(
        asking.forward, index, trained.config, trained.statistics, mesh, device, asking.keep_keys, views
    )
    keys, decoded_N, score_NC = asking.gathered(len(index))
    if dist.get_rank() > 0:
        return Asked(evaluation, None, None)
    answers = Answers(
        keys,
        matched.number_of[index.samples["label"]],
        _probabilities(score_NC, decoded_N) if logits else score_NC,
        classes_of(found),
        ({"checkpoint": str(found.folder), "step": found.commit.step, "views": views},),
    )
    return Asked(evaluation, answers, score_NC if logits else None)


@dataclass
class _Asking:
    """A forward that remembers what the network answered."""

    trained: Trained
    mesh: Mesh
    number_of: Tensor
    views: int
    as_logits: bool
    _keys: list[tuple[str, ...]] = field(default_factory=list)
    _batches: list[tuple[NDArray[Any], ...]] = field(default_factory=list)

    def forward(
        self, x_rCHW: Tensor, label_r: Tensor, weight_r: Tensor, position_r: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss_b, ahead_b, weight_b) of b images, of which each has `views` rows."""
        logits_rC, _ = self.trained.module.logits(x_rCHW, position_r, position_r)
        label_b, weight_b, position_b = (fact[:: self.views] for fact in (label_r, weight_r, position_r))
        if self.as_logits:
            score_bC = ranked_bC = logits_rC
        else:  # fp32, so that an average is the same now and of files later
            score_bC = averaged(logits_rC, self.views).float() * (weight_b > 0)[:, None]
            ranked_bC = score_bC.double().clamp_min(LEAST_PROBABILITY).log()
        loss_b, ahead_b = cross_entropy(ranked_bC, self.number_of[label_b], 0, self.mesh)
        real_b = position_b >= 0
        facts = (position_b[real_b], weight_b[real_b] > 0, score_bC[real_b])
        self._batches.append(tuple(fact.cpu().numpy() for fact in facts))
        return loss_b, ahead_b, weight_b.to(loss_b.dtype)

    def keep_keys(self, batch: Batch) -> None:
        self._keys.append(batch.keys)

    def gathered(self, images: int) -> tuple[tuple[str, ...], NDArray[np.bool_], NDArray[np.float32]]:
        """On rank 0, of all ranks' images by their number in the index: keys, decoded (N,), scores (N, C).

        Batch by batch, of which every rank has as many: all at once, rank 0 would hold the scores several times.
        """
        keys, decoded_N = [""] * images, np.zeros(images, dtype=bool)
        score_NC = np.zeros((images, self._batches[0][2].shape[1]), dtype=np.float32)
        while self._batches:
            parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
            dist.gather_object((self._keys.pop(), *self._batches.pop()), parts)
            for keys_b, position_b, decoded_b, score_bC in parts or ():
                decoded_N[position_b], score_NC[position_b] = decoded_b, score_bC
                for number, key in zip(position_b.tolist(), keys_b, strict=True):
                    keys[number] = key
        return tuple(keys), decoded_N, score_NC


def _probabilities(logits_NC: NDArray[np.float32], decoded_N: NDArray[np.bool_]) -> NDArray[np.float32]:
    """As a file has them: fp32, zeros where the picture did not decode."""
    probability_NC = np.empty_like(logits_NC)
    for first in range(0, len(logits_NC), ROWS_AT_A_TIME):
        some = slice(first, first + ROWS_AT_A_TIME)
        probability_NC[some] = averaged(torch.from_numpy(logits_NC[some]), 1).float().numpy()
    probability_NC[~decoded_N] = 0
    return probability_NC
