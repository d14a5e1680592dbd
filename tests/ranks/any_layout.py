"""What ranks do for tests/ranks/test_any_layout.py: save a state that is known in every element, and look for it."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dist_alexnet.arithmetic import agreed_arithmetic
from dist_alexnet.checkpoint import store
from dist_alexnet.checkpoint.commit import Found, read_commit
from dist_alexnet.checkpoint.finding import resolve
from dist_alexnet.config import Config, batches_on, config_from
from dist_alexnet.engine import Engine, LearnedTensor
from dist_alexnet.job import network_of
from dist_alexnet.network.build import ColumnNetwork
from dist_alexnet.network.spec import load_spec
from dist_alexnet.parallel.layout import Layout, owned_rows
from dist_alexnet.parallel.mesh import Mesh, make_mesh

CLASSES = 7  # a number that neither 2 nor 4 divides


def config_of(case: dict[str, Any]) -> Config:
    """case: columns, replicas, zero_stage, precision, optimizer; clip_norm where it clips."""
    layout = {key: case[key] for key in ("columns", "replicas", "zero_stage")}
    values = {
        "data": {"batch_size": 24, "image_size": 64, "resize": 72, "workers": 0},
        "network": {"num_classes": CLASSES, "width": 0.0625},
        "parallel": layout,
        "precision": case["precision"],
        "optimizer": {"name": case["optimizer"], "clip_norm": case.get("clip_norm", 0.0)},
    }
    return config_from(values, str(case))


@lru_cache(maxsize=64)
def _mesh(layout: Layout) -> Mesh:
    """Kept: each has process groups of its own."""
    return make_mesh(layout, "cpu")


def engine_of(case: dict[str, Any]) -> Engine:
    """An engine that has not trained, on the layout of `case`."""
    config = config_of(case)
    batches = batches_on(config, dist.get_world_size())
    mesh = _mesh(Layout(batches.data_ranks, config.parallel.replicas, config.parallel.columns))
    network = network_of(config, load_spec(config.network.name))
    arithmetic = agreed_arithmetic(config, torch.device("cpu"))
    module = ColumnNetwork(network, mesh, config.run.seed, arithmetic, None)
    learned = [
        LearnedTensor(one.tensor, module.parameter_of(one.tensor), one.multipliers.lr, one.multipliers.decay)
        for one in network.learned
    ]
    return Engine(module, learned, config, mesh)


@lru_cache(maxsize=256)
def known(name: str, kind: str, elements: int) -> Tensor:
    """The flattened logical tensor: bits that are a function of its name alone."""
    seed = int.from_bytes(hashlib.sha256(f"{name}/{kind}".encode()).digest()[:7], "little")
    return torch.randn(elements, generator=torch.Generator().manual_seed(seed))


def saved(case: dict[str, Any], to: str) -> None:
    """Save the known state from the layout of `case`."""
    engine = engine_of(case)
    with engine.loading():
        for part in engine.fragments():
            whole = known(part.name, part.kind, part.total)
            part.values.copy_(whole[part.offset : part.offset + part.values.numel()])
    parts = engine.fragments_to_save()
    store.save(Path(to), parts, step=1, generation=1, layout=case, versions={}, state={})


def loaded(case: dict[str, Any], folders: list[str]) -> list[tuple[str, str]]:
    """Load each of the checkpoints on the layout of `case`. Returns what is not the known state: (folder, tensor)."""
    engine = engine_of(case)
    wrong: list[tuple[str, str]] = []
    for folder in folders:
        place = resolve(folder)
        found = Found(place, read_commit(place))
        with engine.loading():
            for part in engine.fragments():
                part.values.fill_(torch.nan)
            store.load(found, engine.fragments())
        wrong += [(folder, name) for name in _wrong(engine, found)]
    return wrong


def _wrong(engine: Engine, found: Found) -> list[str]:
    """Names of tensors that are not as known: what the rule keeps, and the weights that forward computes with."""
    seen, wrong = set(), []
    for part in engine.fragments():
        seen.add(f"{part.name}/{part.kind}")
        whole = known(part.name, part.kind, part.total)
        if not torch.equal(part.values, whole[part.offset : part.offset + part.values.numel()]):
            wrong.append(f"{part.name}/{part.kind}")
    kinds = {name.rpartition("/")[2] for name in seen}
    assert kinds == (
        {"weight", "momentum", "square"} if "adamw" in str(found.commit.layout) else {"weight", "momentum"}
    )
    if engine.stage < 3:  # in stage 3 the weights lie in parts between forwards
        for one in engine.learned:
            tensor, rows = one.tensor, owned_rows(one.tensor, engine.mesh.place)
            whole = known(tensor.name, "weight", tensor.elements).view(-1, tensor.row_elements)
            if not torch.equal(one.parameter.detach().view(-1), whole[rows.start : rows.stop].view(-1)):
                wrong.append(f"{tensor.name} (live)")
    return wrong
