"""What `network show` and `wire/bytes_per_step` say a rank sends is what the kernel counts in a real run."""

import json
import sys
from pathlib import Path

import pytest

from dist_alexnet.config import batches_on, load_config
from dist_alexnet.job import network_of
from dist_alexnet.network.cost import data_bytes, sent_on
from dist_alexnet.network.spec import load_spec
from dist_alexnet.parallel.layout import Layout
from dist_alexnet.track.jsonl import read_lines
from tests.ranks.harness import Case, run_cases

STEPS, IMAGES = 4, 24
CASES = {  # name: layout, overrides, bytes of an element on the wire
    "columns": (Layout(columns=2), (), 4),
    "columns-overlap": (Layout(columns=2), ("parallel.overlap=true",), 4),
    "columns-bf16": (Layout(columns=2), ("parallel.exchange=bf16",), 2),
    "columns-bf16-products": (Layout(columns=2), ("precision=bf16",), 2),
    "replicas": (Layout(replicas=2), (), 4),
    "replicas-accumulated": (Layout(replicas=2), ("parallel.micro_batch=12",), 4),
    "replicas-fp16": (Layout(replicas=2), ("parallel.exchange=fp16",), 2),
    "columns-150": (Layout(columns=2), ("network.name=net-150",), 4),
    "batch-norm": (Layout(replicas=2), ("network.name=alexnet-bn", "network.batch_norm_groups=4"), 4),
    "data-zero-0": (Layout(data=2), ("parallel.micro_batch=6",), 4),
    "data-zero-1": (Layout(data=2), ("parallel.zero_stage=1", "parallel.micro_batch=6"), 4),
    "data-zero-2": (Layout(data=2), ("parallel.zero_stage=2", "parallel.micro_batch=6"), 4),
    "data-zero-3": (Layout(data=2), ("parallel.zero_stage=3", "parallel.micro_batch=6"), 4),
}


def overrides(name: str) -> tuple[str, ...]:
    layout, more, _ = CASES[name]
    size = ("network.width=0.5", f"run.steps={STEPS}", "log.every_steps=1000", "data.val=null")
    return (*size, f"parallel.columns={layout.columns}", f"parallel.replicas={layout.replicas}", *more)


@pytest.fixture(scope="module")
def counted(config: Path, runs: Path) -> Path:
    run_cases(2, config, [Case(f"wire-{name}", overrides(name), "wire") for name in CASES])
    return runs


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's counters of connections (Linux)")
@pytest.mark.parametrize("name", CASES)
def test_bytes_on_the_wire(counted: Path, config: Path, name: str) -> None:
    layout, _, element_bytes = CASES[name]
    settings = load_config(config, overrides(name))
    sent = sent_on(network_of(settings, load_spec(settings.network.name)), layout)
    accumulation = batches_on(settings, 2).accumulation
    expected = float(
        sent.step_bytes(IMAGES // layout.data, element_bytes)
        + data_bytes(sent.held, layout.data, settings.parallel.zero_stage, accumulation)
    )
    (line,) = [line for line in read_lines(counted / f"wire-{name}" / "metrics.jsonl") if "train/loss" in line]
    assert line["wire/bytes_per_step"] == expected
    for rank in range(2):
        steps = json.loads((counted / f"wire-{name}-{rank}.json").read_text())
        assert len(steps) == STEPS
        assert min(steps) == pytest.approx(expected, rel=0.02), (rank, steps, expected)
        assert max(steps[1:]) == pytest.approx(expected, rel=0.02), (rank, steps, expected)
