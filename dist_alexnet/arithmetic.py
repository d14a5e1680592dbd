"""How the ranks of a world compute: in which precision, and by which decoder. All ranks agree on it."""

import torch

from dist_alexnet.config import Config
from dist_alexnet.crash import say_on_first_rank
from dist_alexnet.data.nvjpeg import missing
from dist_alexnet.errors import LayoutError
from dist_alexnet.network.build import Arithmetic
from dist_alexnet.parallel.agree import on_every_rank


def agreed_decoder(config: Config, device: torch.device) -> Config:
    """The config as the ranks can decode: where one of them has no nvJPEG none uses it. Says so. All ranks call it."""
    if config.data.decoder != "nvjpeg":
        return config
    whys = [why for why in on_every_rank(lambda: missing(device)) if why]
    if not whys:
        return config
    say_on_first_rank(f"data.decoder is nvjpeg, but {whys[0]}: all ranks decode on the CPU, as with auto")
    return config.model_copy(update={"data": config.data.model_copy(update={"decoder": "auto"})})


def agreed_arithmetic(config: Config, device: torch.device) -> Arithmetic:
    """How the network is computed here. All ranks call it. Raises LayoutError as `agreed_compute_dtype`."""
    sent = {"full": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.parallel.exchange]
    return Arithmetic(
        agreed_compute_dtype(config, device), sent, config.parallel.channels_last, config.parallel.overlap
    )


def agreed_compute_dtype(config: Config, device: torch.device) -> torch.dtype | None:
    """The dtype of convolutions and products, None where they stay as the weights are. All ranks call it.

    auto: bf16 where every rank's GPU has it. Raises LayoutError where it is asked for and some GPU has it not.
    """
    able = all(on_every_rank(lambda: device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)))
    if config.precision == "bf16" and not able:
        raise LayoutError("precision is bf16, but not every GPU here has it: set it to fp32, or to auto")
    if config.precision == "fp16":
        return torch.float16
    chosen = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda" and able)
    return torch.bfloat16 if chosen else None
