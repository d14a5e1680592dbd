"""The table of contents of a checkpoint: plain JSON, which says where each range of each tensor lies."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from dist_alexnet.checkpoint.place import Place
from dist_alexnet.errors import CheckpointError
from shards import storage

CONTENTS = "contents.json"


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint, as COMMIT promises it."""

    name: str
    bytes: int
    sha256: str


def contents_of(metadata: Metadata, places: Mapping[MetadataIndex, _StorageInfo]) -> dict[str, Any]:
    """The table of what DCP has written. Raises ValueError where a range of a tensor is there twice or not at all."""
    tensors: dict[str, Any] = {}
    for name, stored in metadata.state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        chunks = []
        for chunk in stored.chunks:
            place = places[MetadataIndex(name, chunk.offsets)]
            chunks.append([chunk.offsets[0], chunk.sizes[0], place.relative_path, place.offset, place.length])
        _check_whole(name, chunks, stored.size[0])
        dtype = str(stored.properties.dtype).removeprefix("torch.")
        tensors[name] = {"dtype": dtype, "elements": stored.size[0], "chunks": sorted(chunks)}
    return {"version": 1, "tensors": tensors}


def read_contents(folder: Place) -> Metadata:
    """The table of contents as DCP's metadata.

    Raises CheckpointError where it is missing, not one, or leads out of `folder`; StorageFault where it cannot be read
    just now.
    """
    place = folder / CONTENTS
    try:
        contents = json.loads(place.read())
        if contents["version"] != 1:
            raise ValueError(f"its version is {contents['version']!r}, expected 1")
        tensors = contents["tensors"]
        stored, places = {}, {}
        for name, entry in tensors.items():
            dtype = getattr(torch, entry["dtype"])
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"{entry['dtype']!r} is not a dtype")
            chunks = []
            _check_whole(name, entry["chunks"], entry["elements"])
            for offset, length, file, start, size in entry["chunks"]:
                check_file_name(file)
                chunks.append(ChunkStorageMetadata(torch.Size([offset]), torch.Size([length])))
                places[MetadataIndex(name, torch.Size([offset]))] = _StorageInfo(file, start, size)
            size_whole = torch.Size([entry["elements"]])
            stored[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), size_whole, chunks)
    except storage.Missing as error:
        raise CheckpointError(f"{place} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{place} is not a table of contents: {error}") from error
    return Metadata(dict(stored), storage_data=places, storage_meta=StorageMeta())


def _check_whole(name: str, chunks: list[list[Any]], elements: int) -> None:
    """Raise ValueError unless the chunks [offset, length, ...] hold each element once: torch fills what it finds."""
    held = 0
    for offset, length, *_ in sorted(chunks):
        if offset != held or length <= 0:
            raise ValueError(f"{name} has a chunk of {length} elements from {offset}, expected one from {held}")
        held += length
    if held != elements:
        raise ValueError(f"{name} has chunks of {held} elements, expected {elements}")


def check_file_name(name: str) -> None:
    """Raise ValueError unless `name` is the plain name of a file, which cannot lead out of its folder."""
    if Path(name).name != name or name in ("", ".."):
        raise ValueError(f"{name!r} is not a file name")
