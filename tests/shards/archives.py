"""Small archives of the published layouts: ILSVRC 2012's, CIFAR's, and parquet files as on the Hugging Face hub."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.shards.pictures import jpeg, write_tar

WNIDS = ("n01440764", "n01443537", "n02119789")  # tench, goldfish, kit fox
IDS = (2, 3, 1)  # as in the devkit, which does not count in the order of wnids
WORDS = ("tench, Tinca tinca", "goldfish, Carassius auratus", "kit fox, Vulpes macrotis")
TRUTH = (3, 1, 1, 2, 3)  # the devkit's ids of validation pictures 1, 2, ...


def picture(width: int, height: int, kind: str = "JPEG", mode: str = "RGB", seed: int = 0) -> bytes:
    """Bytes of a smooth picture of that size, format and mode."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def train_pictures(per_class: int = 4) -> dict[str, dict[str, bytes]]:
    """wnid -> (file name -> bytes), with a PNG and a CMYK JPEG under the name .JPEG as in the real set."""
    found = {
        wnid: {f"{wnid}_{10 * label + 7 * i}.JPEG": jpeg(100 * label + i) for i in range(per_class)}
        for label, wnid in enumerate(WNIDS)
    }
    found[WNIDS[0]][f"{WNIDS[0]}_2933.JPEG"] = picture(14, 10, "PNG")
    found[WNIDS[2]][f"{WNIDS[2]}_1309.JPEG"] = picture(14, 10, "JPEG", "CMYK")
    return found


def tar_bytes(content: Iterable[tuple[str | tarfile.TarInfo, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar in memory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format) as tar:
        for name, data in content:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def train_tar(path: Path, pictures: Mapping[str, Mapping[str, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> Path:
    """ILSVRC2012_img_train.tar: a tar of one tar a class."""
    inner = ((f"{wnid}.tar", tar_bytes(files.items(), tar_format)) for wnid, files in pictures.items())
    return write_tar(path, inner, tar_format)


def val_tar(path: Path, count: int = len(TRUTH)) -> Path:
    """ILSVRC2012_img_val.tar: flat."""
    names = ((f"ILSVRC2012_val_{number:08d}.JPEG", jpeg(1000 + number)) for number in range(1, count + 1))
    return write_tar(path, names, tarfile.GNU_FORMAT)


def devkit(path: Path, meta: bytes | None = None, truth: str | None = None, leave_out: str = "") -> Path:
    """ILSVRC2012_devkit_t12.tar.gz with what is read of it, and a little more."""
    text = "".join(f"{number}\n" for number in TRUTH) if truth is None else truth
    files = {
        "readme.txt": b"ILSVRC2012 development kit",
        "data/meta.mat": meta_mat() if meta is None else meta,
        "data/ILSVRC2012_validation_ground_truth.txt": text.encode(),
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            if name != leave_out:
                info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def meta_mat(compress: bool = True, wnids: Sequence[str] = WNIDS, ids: Sequence[int] = IDS) -> bytes:
    """data/meta.mat as MATLAB writes it: the struct array `synsets`, whose last one is no class but a group of them."""
    rows = [
        {"ILSVRC2012_ID": number, "WNID": wnid, "words": words, "gloss": "-", "num_children": 0, "children": ()}
        for number, wnid, words in sorted(zip(ids, wnids, WORDS, strict=True))
    ]
    rows.append({"ILSVRC2012_ID": 1001, "WNID": "n00001740", "words": "entity", "gloss": "ü", "num_children": 2,
                 "children": (1, 2)})  # fmt: skip
    return mat_file("synsets", rows, compress)


def mat_file(name: str, rows: Sequence[Mapping[str, Any]], compress: bool) -> bytes:
    """A level 5 MAT-file with one struct array (rows x 1) of texts and row vectors of numbers."""
    fields = list(rows[0])
    cells = b"".join(_value(row[field]) for row in rows for field in fields)
    names = b"".join(field.encode().ljust(32, b"\0") for field in fields)
    body = _element(5, struct.pack("<I", 32)) + _element(1, names) + cells
    variable = _matrix(2, (len(rows), 1), name.encode(), body)
    if compress:
        packed = zlib.compress(variable)
        variable = struct.pack("<II", 15, len(packed)) + packed
    return b"MATLAB 5.0 MAT-file, made by a test".ljust(124) + b"\x00\x01IM" + variable


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return _matrix(4, (1, len(value)), b"", _element(4, value.encode("utf-16-le")))
    numbers = np.atleast_1d(np.array(value, np.float64))
    if (numbers == numbers.astype(np.uint16)).all():  # MATLAB stores whole numbers small
        return _matrix(6, (1, numbers.size), b"", _element(4, numbers.astype("<u2").tobytes()))
    return _matrix(6, (1, numbers.size), b"", _element(9, numbers.astype("<f8").tobytes()))


def _matrix(klass: int, shape: tuple[int, int], name: bytes, body: bytes) -> bytes:
    head = _element(6, struct.pack("<II", klass, 0)) + _element(5, struct.pack("<ii", *shape)) + _element(1, name)
    return _element(14, head + body)


def _element(kind: int, data: bytes) -> bytes:
    if 0 < len(data) <= 4 and kind != 14:
        return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def cifar_pixels(count: int, seed: int) -> np.ndarray:
    """uint8 (count, 3, 32, 32)."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def cifar_archive(path: Path, files: Mapping[str, bytes], folder: str) -> Path:
    """A tar.gz of `files` in `folder`."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def cifar10(path: Path, per_batch: int = 3) -> Path:
    """cifar-10-binary.tar.gz with five batches and the test batch; label (batch + picture) mod 10."""
    names = [*(f"data_batch_{batch}.bin" for batch in range(1, 6)), "test_batch.bin"]
    files = {"batches.meta.txt": b"".join(b"class%d\n" % i for i in range(10)) + b"\n"}
    for batch, name in enumerate(names, start=1):
        pixels = cifar_pixels(per_batch, batch)
        files[name] = b"".join(bytes([(batch + i) % 10]) + pixels[i].tobytes() for i in range(per_batch))
    return cifar_archive(path, files, "cifar-10-batches-bin")


def cifar100(path: Path, count: int = 4) -> Path:
    """cifar-100-binary.tar.gz; picture i has fine class 7 i mod 100, coarse class that mod 20."""
    files = {
        "coarse_label_names.txt": b"".join(b"coarse%d\n" % i for i in range(20)),
        "fine_label_names.txt": b"".join(b"fine%d\n" % i for i in range(100)),
    }
    for seed, name in enumerate(("train.bin", "test.bin")):
        fine = [7 * i % 100 for i in range(count)]
        pixels = cifar_pixels(count, seed)
        files[name] = b"".join(bytes([fine[i] % 20, fine[i]]) + pixels[i].tobytes() for i in range(count))
    return cifar_archive(path, files, "cifar-100-binary")


def parquet_file(path: Path, rows: Sequence[tuple[bytes | None, str | None, int]], names: Sequence[str] | None) -> Path:
    """One parquet file of rows (picture, path, label), in groups of two, with class names as the hub has them."""
    import pyarrow as pa
    from pyarrow import parquet

    image = pa.array(
        [{"bytes": data, "path": name} for data, name, _ in rows],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"image": image, "label": pa.array([label for _, _, label in rows], pa.int64())})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=2)
    return path
