"""What a line of metrics says of its interval: in one process, the other rank's part given."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dist_alexnet import measures as measures_module
from dist_alexnet.config import config_from
from dist_alexnet.data.batch import Batch
from dist_alexnet.engine import LearnedTensor
from dist_alexnet.guard.divergence import DivergenceGuard
from dist_alexnet.guard.heartbeat import Heartbeat
from dist_alexnet.guard.stragglers import Stragglers
from dist_alexnet.measures import Measures, image_flops, wire_bytes
from dist_alexnet.network.build import Arithmetic
from dist_alexnet.network.cost import sent_on
from dist_alexnet.network.sizes import network_for
from dist_alexnet.network.spec import load_spec
from dist_alexnet.optim.schedules import Rates
from dist_alexnet.parallel.layout import Layout, LogicalTensor
from dist_alexnet.parallel.mesh import Mesh

CONV = LogicalTensor("conv1.weight", (96, 3, 11, 11), "column")
ENGINE: Any = SimpleNamespace(
    learned=[LearnedTensor(CONV, torch.nn.Parameter(torch.zeros(1)), 1.0, 1.0)], loss_scale=None
)


class TwoRanks(Stragglers):
    """As if there were a second rank with three times the figures of this one."""

    def measure(self, steps: int, beside: Any = ()) -> dict[str, float]:
        values = super().measure(steps, beside)
        self.beside = [list(beside), [3 * figure for figure in beside]]
        return values


def job_on(layout: Layout, accumulation: int = 1) -> Any:
    network = network_for(load_spec("alexnet-2012"), num_classes=1000)
    return SimpleNamespace(network=network, layout=layout, batches=SimpleNamespace(accumulation=accumulation))


def config_of(**values: Any) -> Any:
    return config_from({"data": {"batch_size": 24}, **values}, "a test")


def batch_with(fetch_s: float, decode_s: float) -> Batch:
    none = torch.zeros(0)
    return Batch(none, none, none, none, none, none, none, (), (), fetch_s, decode_s)


@pytest.fixture
def rates() -> Rates:
    config = config_of()
    return Rates(config.schedule, config.optimizer.lr, 0, 1)  # type: ignore[arg-type]


def test_an_interval(alone: Mesh, rates: Rates) -> None:
    """3 steps of 2 micro-batches, one slow, and a pause that is no training; the next interval knows nothing of it."""
    config = config_of(log={"peak_tflops": 0.5})
    measures = Measures(config, job_on(Layout(2)), Arithmetic(), ENGINE, TwoRanks(Heartbeat()))
    guard = DivergenceGuard(config.divergence)
    measures.begin(10)
    began_s = time.monotonic()
    for slept_s in (0.01, 0.05, 0.01):
        with measures.step():
            for _ in range(2):
                measures.loaded(iter([batch_with(0.5, 2.0)]))
            with measures.copying():
                time.sleep(slept_s)
    trained_s = time.monotonic() - began_s
    time.sleep(0.2)
    measures.pause(0.2)
    found = measures.values(13, rates, guard)
    assert (found["data/fetch_s"], found["data/decode_s"]) == (2, 8)  # a step, mean over the ranks
    assert 3 * 0.01 <= found["time/step_p50_s"] < 3 * 0.03  # of the slower rank
    assert 3 * 0.03 < found["time/step_p95_s"] < found["time/step_max_s"] < 3 * 0.1
    assert found["speed/images_per_s"] == pytest.approx(3 * 24 / trained_s, rel=0.1)
    assert found["speed/images_per_s_per_device"] == found["speed/images_per_s"] / 2
    assert found["speed/mfu"] == pytest.approx(
        found["speed/images_per_s_per_device"] * 6 * 724_406_816 / 0.5e12, rel=1e-9
    )
    assert found["data/wait_s"] < 0.01
    assert 3e8 < found["memory/host_rss_bytes"] < 3e10
    assert not found.keys() & {"data/transfer_s", "memory/device_peak_bytes"}  # there is no GPU
    measures.begin(13)
    with measures.step():
        measures.loaded(iter([batch_with(0.0, 0.0)]))
    found = measures.values(14, rates, guard)
    assert (found["data/fetch_s"], found["data/decode_s"]) == (0, 0)
    assert found["time/step_max_s"] < 3 * 0.01


def test_without_a_known_peak_there_is_no_mfu(alone: Mesh, rates: Rates) -> None:
    config = config_of()
    measures = Measures(config, job_on(Layout()), Arithmetic(), ENGINE, Stragglers(Heartbeat()))
    assert "speed/mfu" not in measures.values(1, rates, DivergenceGuard(config.divergence))


class Event:
    """As if each copy took 2 ms by the GPU's clock."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.stream: Any = None

    def record(self, stream: Any) -> None:
        self.stream = stream

    def elapsed_time(self, other: "Event") -> float:
        assert self.stream == other.stream == "beside"
        return 2.0


def test_on_a_gpu_that_is_stood_in_for(alone: Mesh, rates: Rates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are timed on their own stream, memory is PyTorch's count, the peak is the one of the GPU's name."""
    device = torch.device("cuda", 0)
    engine: Any = SimpleNamespace(
        learned=[LearnedTensor(CONV, SimpleNamespace(device=device), 1.0, 1.0)],  # type: ignore[arg-type]
        loss_scale=None,
    )
    monkeypatch.setattr(measures_module, "beside_stream", lambda device: "beside")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5e9)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    config = config_of()
    for dtype, peak_tflops in ((torch.bfloat16, 312), (None, 19.5)):
        measures = Measures(config, job_on(Layout()), Arithmetic(compute_dtype=dtype), engine, TwoRanks(Heartbeat()))
        measures.begin(0)
        for _ in range(3):
            with measures.copying():
                pass
        found = measures.values(2, rates, DivergenceGuard(config.divergence))
        assert found["data/transfer_s"] == pytest.approx(2 * 3 * 0.002 / 2)  # mean of the ranks' sums, over 2 steps
        assert found["memory/device_peak_bytes"] == 3 * 5e9
        flops = found["speed/images_per_s"] * 6 * 724_406_816
        assert found["speed/mfu"] == pytest.approx(flops / (peak_tflops * 1e12))


def test_flops_of_an_image() -> None:
    assert image_flops(job_on(Layout())) == 6 * 724_406_816


@pytest.mark.parametrize(
    ("stage", "accumulation", "passes"), [(0, 1, 2), (0, 4, 2), (1, 4, 3), (2, 1, 3), (2, 4, 9), (3, 1, 3), (3, 4, 12)]
)
def test_bytes_over_data_ranks(stage: int, accumulation: int, passes: int) -> None:
    """Four data ranks, each of which holds all 60,965,224 parameters; softmax and labels stay at home."""
    config = config_of(parallel={"zero_stage": stage})
    found = wire_bytes(config, job_on(Layout(4), accumulation), Arithmetic())
    assert found == passes * 3 / 4 * 60_965_224 * 4


@pytest.mark.parametrize(
    ("arithmetic", "element_bytes"),
    [
        (Arithmetic(), 4),
        (Arithmetic(compute_dtype=torch.bfloat16), 2),
        (Arithmetic(exchange=torch.float16), 2),
        (Arithmetic(compute_dtype=torch.bfloat16, exchange=torch.float16), 2),
    ],
)
def test_bytes_inside_a_model_group(arithmetic: Arithmetic, element_bytes: int) -> None:
    """Activations as they are computed or exchanged, of the 12 images of one of two model groups."""
    job = job_on(Layout(data=2, columns=2))
    sent = sent_on(job.network, job.layout)
    expected = float(sent.step_bytes(12, element_bytes)) + 2 * 1 / 2 * sent.held * 4
    assert wire_bytes(config_of(parallel={"columns": 2}), job, arithmetic) == expected
