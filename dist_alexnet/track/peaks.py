"""What GPUs can compute at most, for `speed/mfu`: dense products, without sparsity, by NVIDIA's data sheets."""

import re

# Words of the name that the driver gives -> TFLOP/s of products in bf16 or fp16, and of fp32 (no TF32: training has it
# off). The first that fits counts, so what has more words comes first.
TFLOPS: dict[tuple[str, ...], tuple[float, float]] = {
    ("V100", "PCIE"): (112, 14),
    ("V100",): (125, 15.7),
    ("A100",): (312, 19.5),
    ("L4",): (121, 30.3),
    ("L40S",): (362, 91.6),
    ("H100", "PCIe"): (756, 51),
    ("H100", "NVL"): (835, 60),
    ("H100",): (989, 67),
    ("H200", "NVL"): (835, 60),
    ("H200",): (989, 67),
    ("B200",): (2250, 75),
}


def peak_tflops(device_name: str, *, half: bool) -> float | None:
    """Of one GPU, in bf16 or fp16 (`half`) or in fp32; None for one that is not in the table, and for a part of one."""
    words = set(re.split(r"[\s-]+", device_name))
    if "MIG" in words:
        return None
    return next((peaks[0 if half else 1] for named, peaks in TFLOPS.items() if words.issuperset(named)), None)
