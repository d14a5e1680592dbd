"""What goes into a network's last layer, and what comes out of it, while somebody looks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dist_alexnet.network.build import ColumnNetwork
from dist_alexnet.parallel.collectives import gather_units


@dataclass
class Tap:
    """Of the newest forward, for all images of the model group; all its ranks have the same."""

    features_BD: Tensor = field(default_factory=lambda: torch.empty(0))  # the last hidden layer's units
    logits_BC: Tensor = field(default_factory=lambda: torch.empty(0))  # of all classes, fp32 at least


@contextmanager
def tapped(module: ColumnNetwork) -> Iterator[Tap]:
    """Inside, each forward of `module` (through DeepSpeed or not) fills the tap.

    Between the ranks of a model group it sends the logits, so all of them tap, or none.
    """
    tap = Tap()
    last = module.network.steps[-1].weight
    assert last is not None  # the last layer is fully connected

    def look(layer: torch.nn.Module, inputs: tuple[Tensor, ...], logits_Bu: Tensor) -> None:
        tap.features_BD = inputs[0].detach()
        tap.logits_BC = gather_units(logits_Bu.detach(), last.tensor, module.mesh)

    handle = module.layer_of(last.tensor).register_forward_hook(look)
    try:
        yield tap
    finally:
        handle.remove()
