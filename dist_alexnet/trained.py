"""A network with the weights of a checkpoint, whole on every rank: to be evaluated, looked at, or asked."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dist_alexnet.arithmetic import agreed_arithmetic
from dist_alexnet.checkpoint.commit import Found
from dist_alexnet.checkpoint.finding import resolve
from dist_alexnet.checkpoint.store import find, load
from dist_alexnet.config import Cache, Config, config_from
from dist_alexnet.crash import say_on_first_rank
from dist_alexnet.data.statistics import Statistics, statistics_for, used_digest
from dist_alexnet.engine import Fragment, Kind
from dist_alexnet.errors import CheckpointError
from dist_alexnet.job import network_of
from dist_alexnet.network.build import ColumnNetwork
from dist_alexnet.network.spec import Spec, spec_from
from dist_alexnet.parallel.agree import together
from dist_alexnet.parallel.layout import LogicalTensor
from dist_alexnet.parallel.mesh import Mesh
from shards.storage import shown


def averaged(logits_rC: Tensor, views: int) -> Tensor:
    """Probabilities in fp64, (r / views, C): the softmax, averaged over the `views` rows of an image, which are next
    to each other.
    """
    return logits_rC.double().softmax(1).view(-1, views, logits_rC.shape[1]).mean(1)


@dataclass(frozen=True)
class Trained:
    """What `load_trained` gives. `module` is in evaluation mode; its `logits` are of all classes."""

    found: Found
    config: Config  # the run's, without its cache, decoding as this host does
    spec: Spec
    module: ColumnNetwork
    statistics: Statistics  # of pixels, as the run had them
    classes: tuple[str, ...] | None  # names, where the training set had some
    words: tuple[str, ...] | None = None  # what they mean, where it said so


def load_trained(checkpoint: str | Path, mesh: Mesh, device: torch.device) -> Trained:
    """The weights of a checkpoint (path or URL of a step or a run). mesh: of model groups of one rank.

    All ranks call it. Raises CheckpointError, ConfigError, LayoutError, or StorageFault.
    """
    return load_found(find_trained(checkpoint), mesh, device)


def find_trained(checkpoint: str | Path) -> Found:
    """The checkpoint that is meant, once its files were looked at; says what was passed over. As load_trained."""
    together(lambda: resolve(checkpoint))
    found, passed_over = find(checkpoint)
    for line in passed_over:
        say_on_first_rank(f"passed over: {line}")
    return found


def load_found(found: Found, mesh: Mesh, device: torch.device) -> Trained:
    """The weights of a checkpoint that was found; as load_trained."""
    config, spec = declared(found)
    # Read once, perhaps on another machine than the run's: not through the cache that the run had.
    config = config.model_copy(update={"data": config.data.model_copy(update={"cache": Cache()})})
    statistics = together(lambda: same_statistics(found, config))
    network = network_of(config, spec)
    # Drawn from seed 0, and each element overwritten below.
    module = ColumnNetwork(network, mesh, 0, agreed_arithmetic(config, device)).to(device).eval()
    kinds: tuple[tuple[Kind, tuple[LogicalTensor, ...]], ...] = (
        ("weight", network.tensors),
        ("statistic", network.statistics),
    )
    parts = [
        Fragment(one.name, kind, module.values_of(one).data.view(-1), 0, one.elements)
        for kind, tensors in kinds
        for one in tensors
    ]
    load(found, parts)
    words = found.commit.state.get("class_words")
    return Trained(found, config, spec, module, statistics, classes_of(found), None if words is None else tuple(words))


def classes_of(found: Found) -> tuple[str, ...] | None:
    """Names of the classes, where the training set had some."""
    names = found.commit.state.get("classes")
    return None if names is None else tuple(names)


def declared(found: Found) -> tuple[Config, Spec]:
    """What a checkpoint says of itself. Raises CheckpointError or ConfigError."""
    state = found.commit.state
    if "config" not in state or "network" not in state:
        raise CheckpointError(
            f"checkpoint {found.folder} does not say of which network it is: another version wrote it"
        )
    config = config_from(state["config"], str(found.folder))
    # As this host's CPU has it: the pixels are the same, or nearly, where the run decoded by nvJPEG.
    data = config.data.model_copy(update={"decoder": "auto"})
    return config.model_copy(update={"data": data}), spec_from(state["network"], str(found.folder))


def same_statistics(found: Found, config: Config) -> Statistics:
    """The statistics that the network was trained with. Raises CheckpointError where the file is another one now."""
    statistics = statistics_for(config.data)
    identity = found.commit.state.get("identity", {})
    if "data.statistics" in identity and identity["data.statistics"] != used_digest(config.data, statistics):
        raise CheckpointError(
            f"checkpoint {found.folder} was trained with other statistics than those of {shown(config.data.statistics)}"
            " (data.statistics): bring the right file back"
        )
    return statistics
