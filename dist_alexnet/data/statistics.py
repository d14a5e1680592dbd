"""Mean and colours of a training set: ImageNet's as published, or from the file that `shards info --statistics` writes.

`<split>.statistics.json` holds the numbers, `<split>.mean.npy` beside it the mean image (fp32, (3, resize, resize)).
"""

import hashlib
import io
import json
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_alexnet.config import Data
from dist_alexnet.errors import ConfigError
from shards import storage
from shards.errors import InputError
from shards.storage import shown

SCHEMA_VERSION = 1
STATISTICS_SUFFIX = ".statistics.json"
MEAN_SUFFIX = ".mean.npy"
_COMMAND = "`dist-alexnet shards info INDEX --statistics`"

Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of the pixels (0-255) of a set.

    mean: R, G, B. deviations: along the three axes of the colours, the square roots of their covariance's eigenvalues.
    vectors: those axes, row i (R, G, B) goes with deviations[i]. mean_image: fp32 (3, resize, resize), or None.
    """

    mean: Triple
    deviations: Triple
    vectors: tuple[Triple, Triple, Triple]
    mean_image: NDArray[np.float32] | None = None


# As cuda-convnet2 published them (make-data/input_meta); a mean image takes a pass over the set.
IMAGENET = Statistics(
    mean=(127.305, 119.715, 104.913),
    deviations=(19.7208, 37.0939, 121.7801),
    vectors=((0.41796, -0.81698, 0.39731), (-0.71258, -0.02354, 0.70120), (-0.56351, -0.57618, -0.59200)),
)


def statistics_for(data: Data) -> Statistics:
    """What data.statistics names; a file is only read where mean or colour noise use it. Raises ConfigError."""
    used = isinstance(data.mean, str) or data.augment.colour.deviation > 0
    if data.statistics == "imagenet" or not used:
        return IMAGENET
    return read_statistics(data.statistics, data.resize if data.mean == "image" else None)


def mean_pixels(data: Data, statistics: Statistics) -> NDArray[np.float32]:
    """What is subtracted from a crop: fp32 (3, 1, 1), or the mean image's centre, (3, image_size, image_size).

    The centre is taken wherever the crop was, as in 2012.
    """
    if data.mean == "image":
        assert statistics.mean_image is not None  # statistics_for saw to it
        start = (data.resize - data.image_size) // 2
        inside = slice(start, start + data.image_size)
        return np.ascontiguousarray(statistics.mean_image[:, inside, inside])
    mean = statistics.mean if data.mean == "colour" else data.mean
    return np.array(mean, dtype=np.float32)[:, None, None]


def used_digest(data: Data, statistics: Statistics) -> str | None:
    """sha256 (hex) of the statistics that the settings use, wherever they lie; None where they use none."""
    used: dict[str, Any] = {}
    if data.mean == "colour":
        used["mean"] = statistics.mean
    if data.mean == "image":
        assert statistics.mean_image is not None
        used["mean_image"] = hashlib.sha256(statistics.mean_image.tobytes()).hexdigest()
    if data.augment.colour.deviation:
        used["colours"] = [statistics.deviations, statistics.vectors]
    return hashlib.sha256(json.dumps(used).encode()).hexdigest() if used else None


def read_statistics(url: str, resize: int | None) -> Statistics:
    """Read and check a statistics file. resize: of the mean image that is needed, None if it is not.

    Raises ConfigError in one sentence, StorageFault where the storage does not answer.
    """
    if not url.endswith(STATISTICS_SUFFIX):
        raise ConfigError(
            f"data.statistics is {shown(url)}, expected imagenet or the URL of a *{STATISTICS_SUFFIX} file"
        )
    if not storage.exists(url):
        raise ConfigError(f"there is no statistics file {shown(url)} (data.statistics): compute it with {_COMMAND}")
    try:
        document = json.loads(storage.read_all(url))
        if document["schema_version"] != SCHEMA_VERSION:
            raise _bad(url, f"has schema version {document['schema_version']!r} where {SCHEMA_VERSION} is expected")
        mean, deviations = _triple(document["mean_colour"]), _triple(document["standard_deviations"])
        first, second, third = (_triple(row) for row in document["eigenvectors"])
        found, stored = document["resize"], document["mean_image"]
        name, sha256 = str(stored["file"]), str(stored["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise _bad(url, f"does not have the fields of statistics ({type(error).__name__}: {error})") from error
    vectors = (first, second, third)
    if min(deviations) < 0 or not np.allclose(np.array(vectors) @ np.array(vectors).T, np.eye(3), atol=1e-4):
        raise _bad(url, "has colours whose axes are not at right angles or whose deviations are below 0")
    if resize is None:
        return Statistics(mean, deviations, vectors)
    if found != resize:
        raise ConfigError(
            f"the mean image of {shown(url)} is of pictures at {found} pixels, data.resize is {resize}: "
            f"compute it with `dist-alexnet shards info INDEX --statistics --resize {resize}`"
        )
    image = _mean_image(storage.join(storage.parent(url)[0], name), sha256, resize)
    return Statistics(mean, deviations, vectors, image)


def _mean_image(url: str, sha256: str, resize: int) -> NDArray[np.float32]:
    if not storage.exists(url):
        raise ConfigError(f"there is no mean image {shown(url)} beside its statistics file: compute it with {_COMMAND}")
    content = storage.read_all(url)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _bad(url, "is not the mean image that the statistics file beside it describes")
    try:
        image = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise _bad(url, f"is not an array ({error})") from error
    if image.dtype != np.float32 or image.shape != (3, resize, resize) or not np.isfinite(image).all():
        raise _bad(url, f"is {image.dtype} {image.shape} where finite float32 (3, {resize}, {resize}) is expected")
    return np.ascontiguousarray(image)


def check_writable(folder: str) -> None:
    """Raise InputError where files can surely not be written to `folder`: before the long work and not after it."""
    path = storage.local_path(folder)
    if path is None:
        able = not folder.startswith(("http://", "https://"))
    else:
        here = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
        able = here.is_dir() and os.access(here, os.W_OK | os.X_OK)
    if not able:
        raise InputError(f"statistics cannot be written to {shown(folder)}: give another folder with --to")


def write_statistics(folder: str, split: str, facts: dict[str, Any], statistics: Statistics) -> str:
    """Write mean image and statistics of `split` into `folder`; returns the URL of the statistics.

    facts: what else the file says of the set. The bytes depend on the arguments alone. Raises InputError where the
    folder may not be written.
    """
    assert statistics.mean_image is not None
    buffer = io.BytesIO()
    np.save(buffer, statistics.mean_image, allow_pickle=False)
    image = {"file": split + MEAN_SUFFIX, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    document = {
        "schema_version": SCHEMA_VERSION,
        "split": split,
        "mean_colour": statistics.mean,
        "standard_deviations": statistics.deviations,
        "eigenvectors": statistics.vectors,
        "mean_image": image,
        **facts,
    }
    url = storage.join(folder, split + STATISTICS_SUFFIX)
    storage.write_atomic(storage.join(folder, split + MEAN_SUFFIX), buffer.getvalue())
    storage.write_atomic(url, (json.dumps(document, sort_keys=True, indent=1) + "\n").encode())
    return url


def _triple(values: Any) -> Triple:
    one, two, three = (float(value) for value in values)
    if not all(map(math.isfinite, (one, two, three))):
        raise ValueError(f"{values!r} is not finite")
    return one, two, three


def _bad(url: str, what: str) -> ConfigError:
    return ConfigError(f"the file {shown(url)} {what}: make it again with {_COMMAND}")
