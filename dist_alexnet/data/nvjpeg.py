"""The GPU's way from JPEG to pixels: loader processes hand over files, and the rank decodes them on its GPU.

A picture is decoded whole and then cut and resampled as on the CPU, to the rounding of a weight. What nvJPEG is not
asked for, because by its bytes it is no plain sound JPEG, or what it refuses, goes to Pillow, one by one, which alone
says what is a fault. Who decodes a picture hangs on its bytes alone, never on what else is in its batch.

The calls to the library are all in `_nvjpeg`; the rest is torch, the same on a CPU.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from dist_alexnet.data.batch import Batch, Fault, beside_stream
from dist_alexnet.data.crop import Box, BoxOf
from dist_alexnet.data.decode import DecodeFault, decode_crop, head_of, same_box, small_jpegs
from shards.reader import RawSample

THREADS = 4  # of the host a rank, for what nvJPEG does not do on the GPU; not tuned
NEARLY = 8.0  # levels of 255, on average over a small picture: other arithmetic stays below, other colours do not

Decode = Callable[[Sequence[np.ndarray]], Sequence[Tensor | None]]  # files -> uint8 (H, W, 3); None: ask Pillow


@dataclass(frozen=True)
class Picture:
    """One file of a batch, and what is to be cut from it."""

    slot: int  # its place in the batch
    key: str
    url: str  # of its shard
    size_bytes: int
    box: Box
    is_plain: bool  # else nvJPEG is not asked


@dataclass(frozen=True)
class Files:
    """A batch that is not decoded. All files are one tensor: each tensor costs on its way from a loader process."""

    batch: Batch  # without pixels
    image_size: int
    bytes_N: Tensor  # uint8: the files, end to end
    pictures: tuple[Picture, ...]  # in that order

    def pin_memory(self) -> "Files":
        """For the DataLoader, as Batch has it."""
        return replace(self, batch=self.batch.pin_memory(), bytes_N=self.bytes_N.pin_memory())


def picture_of(slot: int, sample: RawSample, box_of: BoxOf) -> Picture:
    """What the head of a file says. Raises DecodeFault."""
    width, height, is_plain = head_of(sample.jpeg)
    return Picture(slot, sample.key, sample.url, len(sample.jpeg), box_of(width, height), is_plain)


def joined(files: Sequence[bytes]) -> Tensor:
    """uint8 (N,): all their bytes, end to end."""
    return torch.from_numpy(np.frombuffer(bytearray().join(files), dtype=np.uint8))


def decoded_here(files: Files) -> Batch:
    """The batch, its pixels on this rank's GPU, decoded beside what that computes: Batch.to waits for them."""
    device = torch.device("cuda", torch.cuda.current_device())
    with torch.cuda.stream(beside_stream(device)):
        return decoded(files, _nvjpeg(device.index), device)


def decoded(files: Files, decode: Decode, device: torch.device) -> Batch:
    """The batch with its pixels on the device; a picture that nobody decodes becomes a fault, with weight 0."""
    batch, size = files.batch, files.image_size
    pixels_b3SS = torch.zeros(len(batch.label_b), 3, size, size, dtype=torch.uint8, device=device)
    faults, weight_b = list(batch.faults), batch.weight_b
    stored = [file.numpy() for file in torch.split(files.bytes_N, [one.size_bytes for one in files.pictures])]
    plain = [file for file, one in zip(stored, files.pictures, strict=True) if one.is_plain]
    found = iter(decode(plain) if plain else ())
    for file, one in zip(stored, files.pictures, strict=True):
        whole_HW3 = next(found) if one.is_plain else None
        try:
            if whole_HW3 is None:
                crop = decode_crop(file.tobytes(), partial(same_box, one.box), size, "pillow")
                pixels_b3SS[one.slot] = torch.from_numpy(crop)
            else:
                pixels_b3SS[one.slot] = cut(whole_HW3, one.box, size)
        except DecodeFault as fault:
            weight_b[one.slot] = 0
            faults.append(Fault(int(batch.position_b[one.slot]), one.key, one.url, str(fault)))
    return replace(batch, pixels_b3SS=pixels_b3SS, faults=tuple(faults))


def cut(whole_HW3: Tensor, box: Box, size: int) -> Tensor:
    """The box as uint8 (3, size, size): Pillow's bilinear filter, first across, then down, each rounded to a byte."""
    left, top, right, bottom = np.array(box, dtype=np.float32).tolist()  # as Pillow keeps them
    height, width, _ = whole_HW3.shape
    across_SW = _weights(left, right, size, width, whole_HW3.device)
    down_SH = _weights(top, bottom, size, height, whole_HW3.device)
    rows_3HS = _rounded(whole_HW3.permute(2, 0, 1).float() @ across_SW.T)
    return _rounded(down_SH @ rows_3HS).to(torch.uint8)


def _weights(first: float, last: float, size: int, pixels: int, device: torch.device) -> Tensor:
    """What each pixel of a line counts in each of `size` pixels made of first .. last: fp32 (size, pixels).

    A triangle, wider where it shrinks. It reaches over the box's border, but not over the picture's.
    """
    scale = (last - first) / size
    centre_S1 = first + (torch.arange(size, device=device, dtype=torch.float64)[:, None] + 0.5) * scale
    centre_P = torch.arange(pixels, device=device, dtype=torch.float64) + 0.5
    weight_SP = (1 - (centre_P - centre_S1).abs() / max(scale, 1.0)).clamp_min(0)
    return (weight_SP / weight_SP.sum(1, keepdim=True)).float()


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor_()


def missing(device: torch.device) -> str | None:
    """Why this rank cannot decode by nvJPEG. None where it can: it has decoded small pictures nearly as Pillow does."""
    if device.type != "cuda":
        return f"there is no GPU on host {platform.node()}"
    try:
        with torch.cuda.stream(beside_stream(device)):
            furthest = _furthest(_nvjpeg(device.index))
    except Exception as error:  # whatever the library raises where its package, nvJPEG or a driver is not there
        return f"it does not work on host {platform.node()} ({type(error).__name__}: {error})"
    if furthest > NEARLY:
        return f"on host {platform.node()} it is {furthest:.1f} levels off Pillow's pixels, expected at most {NEARLY}"
    return None


def _furthest(decode: Decode) -> float:
    """How far a decoder is from Pillow on small pictures, in levels: the worst of them; inf where it refuses one."""
    furthest = 0.0
    for picture, box, expected in small_jpegs():
        (whole_HW3,) = decode([np.frombuffer(picture, dtype=np.uint8)])
        if whole_HW3 is None:
            return float("inf")
        off = cut(whole_HW3, box, expected.shape[2]).cpu().float() - torch.from_numpy(expected.astype(np.float32))
        furthest = max(furthest, off.abs().mean().item())
    return furthest


@cache
def _nvjpeg(device: int) -> Decode:
    """nvJPEG on a GPU of this host, through nvImageCodec, on whatever stream is current when it is called."""
    from nvidia import nvimgcodec

    # One kind of decoder: others, such as the GPU's JPEG engine, give other pixels, and where several are allowed it
    # shares a batch out among them. No regions: with them 0.9 is said to crash (NVIDIA/nvImageCodec#55).
    backend = nvimgcodec.Backend(nvimgcodec.BackendKind.HYBRID_CPU_GPU)
    decoder = nvimgcodec.Decoder(device, THREADS, [backend], ":fancy_upsampling=1")  # as libjpeg does
    params = nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB)

    def parsed(file: np.ndarray) -> Any:
        try:
            return nvimgcodec.CodeStream(file.tobytes())
        except RuntimeError:  # no JPEG in its eyes
            return None

    def decode(files: Sequence[np.ndarray]) -> list[Tensor | None]:
        streams = [parsed(file) for file in files]
        known = [stream for stream in streams if stream is not None]
        made = iter(decoder.decode(known, params=params, cuda_stream=torch.cuda.current_stream(device).cuda_stream))
        images = [None if stream is None else next(made) for stream in streams]
        return [None if image is None else from_dlpack(image) for image in images]

    return decode
