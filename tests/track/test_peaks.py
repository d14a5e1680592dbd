"""Peaks of GPUs by the name that the driver gives them."""

import pytest

from dist_alexnet.track.peaks import TFLOPS, peak_tflops


@pytest.mark.parametrize(
    ("name", "half", "full"),
    [
        ("Tesla V100-SXM2-16GB", 125, 15.7),
        ("Tesla V100-PCIE-32GB", 112, 14),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 19.5),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA H100 NVL", 835, 60),
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H200", 989, 67),
        ("NVIDIA H200 NVL", 835, 60),
        ("NVIDIA B200", 2250, 75),
    ],
)
def test_known(name: str, half: float, full: float) -> None:
    assert (peak_tflops(name, half=True), peak_tflops(name, half=False)) == (half, full)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA L40", "NVIDIA GeForce RTX 4090", "NVIDIA A10", "AMD Instinct MI300X", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"],
)
def test_unknown(name: str) -> None:
    """Better no figure than one of another GPU, or of a whole one where a part computes."""
    assert peak_tflops(name, half=True) is None


def test_more_words_come_first() -> None:
    """Or the entry of a bare H100 would hide those of its kinds."""
    names = list(TFLOPS)
    assert all(names.index(more) < names.index(fewer) for more in names for fewer in names if set(more) > set(fewer))
