"""The only door to the JPEG library: bytes of a picture -> pixels of one crop."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError, features

# Pillow knows many more, and draws one of them (EPS) by starting a program on what the file says.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")


class DecodeFault(Exception):
    """The bytes are not a picture that can be decoded."""


def decoder_identity() -> str:
    """Names the decoder: other libraries give other pixels, so it is part of a run's identity."""
    library = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    return f"pillow/{library}/bilinear"


def decode_crop(picture: bytes, left: int, top: int, resize: int, image_size: int) -> np.ndarray:
    """One crop as uint8 (3, image_size, image_size), R G B.

    left, top: the crop's corner in the picture's centre square of side `resize`. A picture stored as that square is cut
    without resampling; any other is resampled once, from the box to the crop (bilinear with antialias). Grey, CMYK and
    palette pictures become RGB. Raises DecodeFault.
    """
    try:
        with Image.open(io.BytesIO(picture), formats=FORMATS) as image:
            pixels = image.convert("RGB")
            short = min(pixels.size)
            scale = short / resize
            x = (pixels.width - short) // 2 + left * scale  # the centre square, on whole pixels
            y = (pixels.height - short) // 2 + top * scale
            if short == resize:
                crop = pixels.crop((int(x), int(y), int(x) + image_size, int(y) + image_size))
            else:
                side = image_size * scale
                box = (x, y, min(x + side, pixels.width), min(y + side, pixels.height))
                crop = pixels.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)
    except UnidentifiedImageError as error:  # its own words hold a memory address, another in every process
        raise DecodeFault(f"UnidentifiedImageError: none of {', '.join(FORMATS)}") from error
    except MemoryError:  # the machine's lack, not the picture's
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise DecodeFault(f"{type(error).__name__}: {error}") from error
    return np.ascontiguousarray(np.asarray(crop).transpose(2, 0, 1))
