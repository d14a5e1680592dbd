"""The JSON that DeepSpeed gets: always whole, and its batch sizes always fit together."""

import itertools
import json

import pytest

from dist_alexnet.config import Config
from dist_alexnet.deepspeed_json import deepspeed_json
from dist_alexnet.errors import LayoutError


@pytest.mark.parametrize("clip_norm", [0.0, 1.0, 2.5])
def test_clipping_is_always_said(clip_norm: float) -> None:
    """Left out, DeepSpeed would clip at 1."""
    config = Config.model_validate({"optimizer": {"clip_norm": clip_norm}})
    assert deepspeed_json(config, 1)["gradient_clipping"] == clip_norm


def test_batch_sizes_fit_together_on_every_world() -> None:
    fitted = refused = 0
    for world, columns, replicas, micro in itertools.product(range(1, 17), (1, 2), (1, 2, 3), (None, 6, 12, 24)):
        parallel = {"columns": columns, "replicas": replicas, "micro_batch": micro}
        config = Config.model_validate({"data": {"batch_size": 48}, "parallel": parallel})
        try:
            values = deepspeed_json(config, world)
        except LayoutError:
            refused += 1
            continue
        fitted += 1
        data_ranks = world // (columns * replicas)
        assert world == data_ranks * columns * replicas
        micro_batch, steps = values["train_micro_batch_size_per_gpu"], values["gradient_accumulation_steps"]
        assert micro_batch * steps * data_ranks == values["train_batch_size"] == 48
        assert micro_batch % replicas == 0
        assert micro in (None, micro_batch)
    assert fitted > 50
    assert refused > 50


def test_it_is_json_and_leaves_precision_to_the_network() -> None:
    values = deepspeed_json(Config.model_validate({"precision": "bf16", "parallel": {"zero_stage": 2}}), 4)
    assert json.loads(json.dumps(values)) == values
    assert values["zero_optimization"]["stage"] == 2
    assert not {"bf16", "fp16", "amp", "optimizer", "scheduler"} & values.keys()
