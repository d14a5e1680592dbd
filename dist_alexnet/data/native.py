"""What setup compiles beside this module, where there is a compiler: the filter, and the decoder of crops.

Plain C without Python's API, loaded by ctypes, which lets other threads run meanwhile. A library that is not there is
None: pictures are then decoded without it.
"""

import ctypes
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np

from dist_alexnet.data.crop import Box, BoxOf

_Sizes = ctypes.c_int32 * 2
_Floats = ctypes.c_float * 4


@cache
def region_library() -> ctypes.CDLL | None:
    """Decodes a crop and little more; needs libjpeg-turbo."""
    library = _loaded("_region")
    if library is not None:
        library.region_size.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)
        library.region_crop.argtypes = (
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_void_p,
        )
    return library


@cache
def filter_library() -> ctypes.CDLL | None:
    """Resamples a crop of what another library decoded; needs nothing."""
    library = _loaded("_filter")
    if library is not None:
        library.filter_crop.argtypes = (
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_void_p,
        )
    return library


def region_crop(library: ctypes.CDLL, picture: bytes, box_of: BoxOf, out: np.ndarray) -> bool:
    """One crop of a JPEG to `out`, C-contiguous uint8 (3, side, side). False where the picture is left to Pillow."""
    size = _Sizes()
    if library.region_size(picture, len(picture), size):
        return False
    box = _Floats(*box_of(size[0], size[1]))
    return not library.region_crop(picture, len(picture), box, out.shape[2], out.ctypes.data)


def filter_crop(library: ctypes.CDLL, pixels: np.ndarray, box: Box, out: np.ndarray) -> bool:
    """The box of `pixels`, resampled as Pillow does to `out`. False where it cannot be, such as a box outside.

    Both C-contiguous uint8: (height, width, 4), and (3, side, side).
    """
    height, width, _ = pixels.shape
    return not library.filter_crop(pixels.ctypes.data, width, height, _Floats(*box), out.shape[2], out.ctypes.data)


def _loaded(name: str) -> ctypes.CDLL | None:
    path = Path(__file__).with_name(f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}")
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # not compiled; or compiled for a libjpeg that is not here any more
        return None
