"""Ranks of which all have a decoder in the place of the GPU's, or some have not: kinds of tests/ranks/cases.py."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zlib import crc32

import torch.distributed as dist

from dist_alexnet import arithmetic, evaluate
from dist_alexnet import train as story
from dist_alexnet.__main__ import leave
from dist_alexnet.config import Config
from dist_alexnet.data.batch import Batch
from dist_alexnet.errors import RunFolderError
from dist_alexnet.train import train
from tests.data.stand_in import in_place, whole
from tests.ranks.cases import KINDS, main


def all_have(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Train on pictures a few levels brighter than Pillow's. Writes a checksum of each one's, by position."""
    sums, whole_on = dict[int, int](), evaluate.whole_on

    def noted(*arguments: Any) -> Batch:
        here = whole_on(*arguments)
        for position, pixels in zip(here.position_b.tolist(), here.pixels_b3SS, strict=True):
            sums[position] = crc32(pixels.numpy().tobytes())
        return here

    with in_place(partial(whole, off=5)), patch.object(story, "whole_on", noted):
        train(config)
    (Path(config.run.dir) / f"{name}-{dist.get_rank()}.json").write_text(json.dumps(sums))


def one_has_not(config: Config, name: str, extra: dict[str, Any]) -> None:
    """Train, where the last rank has no nvJPEG; what it ends with is written down by each rank."""
    said = "nothing"
    last = dist.get_world_size() - 1
    with patch.object(arithmetic, "missing", lambda device: "this rank has none" if dist.get_rank() == last else None):
        try:
            train(config)
        except RunFolderError as error:
            said = str(error)
    (Path(config.run.dir) / f"{name}-{dist.get_rank()}.txt").write_text(said)


if __name__ == "__main__":
    KINDS.update(all_have=all_have, one_has_not=one_has_not)
    main(*sys.argv[1:])
    leave(0)
