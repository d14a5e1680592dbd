"""A batch on its way to the device."""

import pytest
import torch

from dist_alexnet.data.batch import Batch


def numbered(number: int, images: int = 16) -> Batch:
    return Batch(
        pixels_b3SS=torch.full((images, 3, 64, 64), number % 256, dtype=torch.uint8),
        mirror_b=torch.zeros(images, dtype=torch.bool),
        label_b=torch.full((images,), number),
        weight_b=torch.ones(images),
        position_b=torch.arange(images),
        noise_b3=torch.zeros(images, 3),
        divisor_b=torch.ones(images),
        keys=tuple(map(str, range(images))),
        faults=(),
    )


def test_on_the_cpu_a_batch_is_what_it_was() -> None:
    batch = numbered(7)
    here = batch.to(torch.device("cpu"))
    assert torch.equal(here.pixels_b3SS, batch.pixels_b3SS)
    assert here.keys == batch.keys


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_copies_beside_what_a_gpu_computes_are_whole_and_are_not_written_over() -> None:
    device, busy = torch.device("cuda"), torch.randn(2048, 2048, device="cuda")
    sums = []
    for number in range(50):
        here = numbered(number).pin_memory().to(device)
        for _ in range(3):  # the copy of the next batch is asked for while this is under way
            busy = (busy @ busy).tanh()
        sums.append(here.pixels_b3SS.sum() + here.label_b.sum())
    pixels = 16 * 3 * 64 * 64
    assert torch.stack(sums).tolist() == [number * (pixels + 16) for number in range(50)]
