"""The only place where sources turn pixels into bytes of a picture, or one picture into another: Pillow's door."""

import io
import warnings

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from shards.errors import InputError

# No more than these: Pillow hands an EPS file, whatever its name, to another program.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
JPEG_MAGIC = b"\xff\xd8\xff"
JPEG_QUALITY = 95
LIBRARY = f"Pillow {PIL.__version__}"


def as_jpeg(data: bytes, where: str) -> bytes:
    """JPEG as it is, once seen that it is whole; any other picture as RGB JPEG of JPEG_QUALITY. InputError else."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if data.startswith(JPEG_MAGIC):
                image.draft("RGB", (1, 1))  # decoding at 1/8 size is enough to see that the file is whole
                image.load()
                return data
            return jpeg(image.convert("RGB"), JPEG_QUALITY)
    except Exception as exc:  # damaged files make Pillow's decoders raise nearly anything
        raise _unreadable(where, exc) from exc


def resized(data: bytes, side: int, square: bool, quality: int, where: str) -> bytes:
    """The picture with its shorter side `side` pixels long, as RGB JPEG; with `square`, the centre square of that.

    Averaged over areas where it shrinks, bicubic where it grows, as cuda-convnet2 did. An RGB JPEG that has this size
    already is kept byte for byte. InputError, naming `where`, for what does not decode.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            warnings.simplefilter("ignore")  # of bad EXIF and the like: the pixels are what matters
            width, height = _size(image.width, image.height, side)
            box = ((width - side) // 2, (height - side) // 2)
            out = (side, side) if square else (width, height)
            image.load()
            if (image.format, image.mode, image.size) == ("JPEG", "RGB", out):
                return data
            pixels = image.convert("RGB")
        if pixels.size != (width, height):
            shrinks = width < pixels.width
            pixels = pixels.resize((width, height), Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC)
        return jpeg(pixels.crop((*box, box[0] + side, box[1] + side)) if square else pixels, quality)
    except Exception as exc:  # also of what no JPEG can hold, such as a side above 65,500
        raise _unreadable(where, exc) from exc


def jpeg(image: Image.Image, quality: int) -> bytes:
    """JPEG bytes (4:2:0 where there is colour) of a picture in memory."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def png(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """PNG bytes, which lose nothing, of uint8 pixels (height, width, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def _size(width: int, height: int, side: int) -> tuple[int, int]:
    short = min(width, height)
    return max(side, round(width * side / short)), max(side, round(height * side / short))


def _unreadable(where: str, exc: Exception) -> InputError:
    return InputError(f"the picture {where} cannot be read ({type(exc).__name__}): mend it or take it out")
