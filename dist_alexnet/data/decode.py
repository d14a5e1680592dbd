"""The only door to the JPEG libraries: bytes of a picture -> pixels of one crop.

Three decoders give the same pixels, so which of them a host has changes the speed of a run and nothing else: Pillow,
which knows every kind of picture; simplejpeg, a package; region, compiled by setup, which decodes little more than the
crop. The latter two leave whatever is not a plain sound JPEG to Pillow, which alone says what is a fault. A fourth,
nvjpeg, works on the GPU and gives other pixels: data/nvjpeg.py, which leaves to Pillow what the others leave to it.
"""

import ctypes
import io
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from dist_alexnet.data import native
from dist_alexnet.data.crop import Box, BoxOf
from dist_alexnet.errors import ConfigError

# Pillow knows many more, and draws one of them (EPS) by starting a program on what the file says.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
MAX_PIXELS = 2**26  # of a picture that is not left to Pillow, which warns of larger ones and refuses the largest

Decoder = Literal["pillow", "simplejpeg", "region", "nvjpeg"]
Fast = Callable[[bytes, BoxOf, np.ndarray], bool]  # the crop to the array; False, and nothing written: ask Pillow

# What is missing where one is not there.
REMEDIES: dict[Decoder, str] = {
    "simplejpeg": "`pip install simplejpeg`",
    "region": "install a C compiler and libjpeg-turbo's header (Debian: libjpeg62-turbo-dev, Ubuntu: "
    "libjpeg-turbo8-dev, Fedora: libjpeg-turbo-devel), then run launch/setup.sh",
}


class DecodeFault(Exception):
    """The bytes are not a picture that can be decoded."""


def decoder_identity(decoder: Literal["auto"] | Decoder = "auto") -> str:
    """Names what the pixels are: part of a run's identity. Decoders that give the same have the same name."""
    library = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    return f"{'nvjpeg+' if decoder == 'nvjpeg' else ''}pillow/{library}/bilinear"


def libraries() -> dict[str, str | None]:
    """Versions of the libraries behind Pillow's JPEG decoder, for a run's record."""
    return {"libjpeg": features.version("jpg"), "libjpeg-turbo": features.version("libjpeg_turbo")}


def decoder_here(wanted: Literal["auto"] | Decoder) -> Decoder:
    """The decoder that `data.decoder` means on this host; auto: the fastest. ConfigError where it is not there.

    nvjpeg is not looked for here: all ranks of a run agree on it.
    """
    if wanted == "pillow" or wanted == "nvjpeg":
        return wanted
    if wanted != "auto":
        if _fast(wanted) is None:
            raise ConfigError(
                f"data.decoder is {wanted}, which is not there on host {platform.node()} or gives other pixels than "
                f"its Pillow: {REMEDIES[wanted]}, or set it to auto"
            )
        return wanted
    able: tuple[Decoder, ...] = ("region", "simplejpeg")
    return next((decoder for decoder in able if _fast(decoder) is not None), "pillow")


def decode_crop(
    picture: bytes,
    box_of: BoxOf,
    image_size: int,
    decoder: Literal["auto"] | Decoder = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """One crop as uint8 (3, image_size, image_size), R G B: a new array, or `out`, which is C-contiguous.

    box_of: (width, height) of the stored picture -> the box to cut. A box of image_size on whole pixels is cut without
    resampling; any other is resampled once, from the box to the crop (bilinear with antialias). Grey, CMYK and palette
    pictures become RGB. With nvjpeg, Pillow decodes: what the GPU leaves. Raises DecodeFault, and `out` is as it was.
    """
    crop = np.empty((3, image_size, image_size), dtype=np.uint8) if out is None else out
    fast = _fast(decoder_here(decoder))
    if fast is None or not fast(picture, box_of, crop):
        crop[:] = _by_pillow(picture, box_of, image_size)
    return crop


def decode_crops(
    picture: bytes, boxes_of: Sequence[BoxOf], decoder: Literal["auto"] | Decoder, out: np.ndarray
) -> None:
    """Several crops of one picture, each as `decode_crop` gives it, to `out`: uint8 (crops, 3, side, side).

    The picture is decoded once, whole, by simplejpeg or by Pillow. Raises DecodeFault, and `out` may be half written.
    """
    if decoder != "pillow" and _fast("simplejpeg") is not None:
        whole, resample = _by_simplejpeg(picture), native.filter_library()
        if whole is not None and all(
            _cut(whole, box_of, resample, crop) for box_of, crop in zip(boxes_of, out, strict=True)
        ):
            return
    pixels = _whole_by_pillow(picture)
    for box_of, crop in zip(boxes_of, out, strict=True):
        crop[:] = _pillows_crop(pixels, box_of, out.shape[3])


def head_of(picture: bytes) -> tuple[int, int, bool]:
    """(width, height, plain) without decoding. Raises DecodeFault, where `decode_crop` does so with the same words.

    plain: by its head and its end, a sound JPEG, grey or YCbCr.
    """
    with _faults_named(), Image.open(io.BytesIO(picture), formats=FORMATS) as image:
        plain = (
            image.format == "JPEG"
            and image.mode in ("L", "RGB")
            and image.info.get("adobe_transform") != 0  # stored as RGB
            and image.width * image.height <= MAX_PIXELS
            and picture.rstrip(b"\0").endswith(b"\xff\xd9")  # else it may be cut short
        )
        return image.width, image.height, plain


def _by_pillow(picture: bytes, box_of: BoxOf, image_size: int) -> np.ndarray:
    return _pillows_crop(_whole_by_pillow(picture), box_of, image_size)


def _whole_by_pillow(picture: bytes) -> Image.Image:
    with _faults_named(), Image.open(io.BytesIO(picture), formats=FORMATS) as image:
        return image.convert("RGB")


def _pillows_crop(pixels: Image.Image, box_of: BoxOf, image_size: int) -> np.ndarray:
    with _faults_named():
        box = box_of(pixels.width, pixels.height)
        x, y = int(box[0]), int(box[1])
        if box == (x, y, x + image_size, y + image_size):
            crop = pixels.crop((x, y, x + image_size, y + image_size))
        else:
            crop = _resampled(pixels, box, image_size)
    return np.asarray(crop).transpose(2, 0, 1)


@contextmanager
def _faults_named() -> Iterator[None]:
    """What Pillow raises inside, as a DecodeFault."""
    try:
        yield
    except UnidentifiedImageError as error:  # its own words hold a memory address, another in every process
        raise DecodeFault(f"UnidentifiedImageError: none of {', '.join(FORMATS)}") from error
    except MemoryError:  # the machine's lack, not the picture's
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise DecodeFault(f"{type(error).__name__}: {error}") from error


def _resampled(image: Image.Image, box: Box, size: int) -> Image.Image:
    """The box at size x size: first across, then down. Pillow rounds in between, and newer ones choose the order."""
    left, top, right, bottom = np.array(box, dtype=np.float32).tolist()  # as Pillow keeps them
    reach = max(1.0, (bottom - top) / size)
    first, last = max(0, int(top - reach) - 1), min(image.height, int(bottom + reach) + 2)  # rows that count
    rows = image.crop((0, first, image.width, last))
    across = rows.resize((size, rows.height), Image.Resampling.BILINEAR, box=(left, 0, right, rows.height))
    return across.resize((size, size), Image.Resampling.BILINEAR, box=(0, top - first, size, bottom - first))


@cache
def _fast(decoder: Decoder) -> Fast | None:
    """How a decoder other than Pillow decodes, None where it is not there, or gives other pixels than Pillow."""
    found: Fast | None = None
    if decoder == "region":
        library = native.region_library()
        found = None if library is None else partial(native.region_crop, library)
    elif decoder == "simplejpeg":
        found = _simplejpeg()
    return found if found is not None and _is_pillows_equal(found) else None


def _simplejpeg() -> Fast | None:
    """The whole picture by simplejpeg; the crop by the compiled filter, or by Pillow's."""
    try:
        import simplejpeg  # noqa: F401
    except ImportError:
        return None
    resample = native.filter_library()

    def decode(picture: bytes, box_of: BoxOf, out: np.ndarray) -> bool:
        pixels = _by_simplejpeg(picture)
        return pixels is not None and _cut(pixels, box_of, resample, out)

    return decode


def _by_simplejpeg(picture: bytes) -> np.ndarray | None:
    """The whole picture as R G B X, (height, width, 4); None where it is left to Pillow. The package must be there."""
    from simplejpeg import decode_jpeg, decode_jpeg_header

    try:
        height, width, colours, _ = decode_jpeg_header(picture)
        if colours not in ("YCbCr", "Gray", "RGB") or height * width > MAX_PIXELS:
            return None
        pixels: np.ndarray = decode_jpeg(picture, "RGBX", strict=True)  # damaged data are an error
    except ValueError:
        return None
    return pixels


def _cut(pixels: np.ndarray, box_of: BoxOf, resample: ctypes.CDLL | None, out: np.ndarray) -> bool:
    """The crop of pixels R G B X, (height, width, 4)."""
    height, width, _ = pixels.shape
    box = box_of(width, height)
    if resample is not None:
        return native.filter_crop(resample, pixels, box, out)
    image = Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)
    crop = _resampled(image, box, out.shape[2])
    out[:] = np.asarray(crop)[:, :, :3].transpose(2, 0, 1)
    return True


def _is_pillows_equal(decode: Fast) -> bool:
    """Whether a decoder gives Pillow's pixels here: some Pillow may be built on another library."""
    for picture, box, expected in small_jpegs():
        crop = np.zeros(expected.shape, dtype=np.uint8)  # in the order of its dims, which `expected` is not
        done = decode(picture, partial(same_box, box), crop)
        # By one where two compilers round a weight in its 22nd bit.
        if not done or np.abs(crop.astype(int) - expected).max() > 1:
            return False
    return True


def small_jpegs() -> Iterator[tuple[bytes, Box, np.ndarray]]:
    """On which a decoder is compared with Pillow: (file, box, Pillow's crop, uint8 (3, 32, 32))."""
    y, x = np.mgrid[0:61, 0:83]
    shapes = np.stack([127 + 120 * np.sin(x / 5 + k) * np.cos(y / (3 + k)) for k in range(3)], axis=2)
    for subsampling in (0, 1, 2):
        buffer = io.BytesIO()
        Image.fromarray(shapes.astype(np.uint8)).save(buffer, "JPEG", quality=90, subsampling=subsampling)
        for box in ((3.25, 5.5, 60.0, 59.75), (20.0, 9.0, 52.0, 41.0)):
            yield buffer.getvalue(), box, _by_pillow(buffer.getvalue(), partial(same_box, box), 32)


def same_box(box: Box, width: int, height: int) -> Box:
    """A box_of that does not look at the size."""
    return box
