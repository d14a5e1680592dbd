"""torch.distributed.checkpoint over ranges of flattened tensors, with a JSON table of contents.

Every tensor is cut on dim 0, so what a rank holds of it, a ZeRO partition included, is one contiguous range of the
flattened whole: a 1-D chunk (offset, length). Any layout and any ZeRO stage can then load what any other saved, and
torch's planner does the rest. The table of contents is JSON in place of torch's pickle, so reading a checkpoint runs
none of its author's code (torch reads the chunks with weights_only=True).
"""

import json
import os
import secrets
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from dist_alexnet.errors import CheckpointError
from shards.errors import StorageFault

CONTENTS = "contents.json"


class FlatChunk(Tensor):
    """A wrapper with the whole's size around this rank's range of it, as DCP's planner asks for it."""

    part: Tensor
    offset: int

    @staticmethod
    def __new__(cls: type["FlatChunk"], values: Tensor, offset: int, total: int) -> "FlatChunk":
        whole: FlatChunk = Tensor._make_wrapper_subclass(cls, (total,), dtype=values.dtype, device=values.device)
        whole.part, whole.offset = values, offset
        return whole

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"FlatChunk({self.offset} + {self.part.numel()} of {self.numel()})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise TypeError(f"{func} on a FlatChunk: it only carries a range to the checkpoint")

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size([self.offset]), torch.Size([self.part.numel()]))

    def __create_write_items__(self, fqn: str, obj: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.part)
        data = TensorWriteData(chunk=self._chunk(), properties=properties, size=self.size())
        index = MetadataIndex(fqn, torch.Size([self.offset]))
        return [WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return self.part


class FlatWriter(FileSystemWriter):
    """DCP's file writer with a JSON table of contents."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, overwrite=False)

    def _metadata_exists(self) -> bool:
        return (Path(self.path) / CONTENTS).exists()

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        places = {result.index: result.storage_data for part in results for result in part}
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
        write_durably(Path(self.path) / CONTENTS, json.dumps({"version": 1, "tensors": tensors}).encode())


class FlatReader(FileSystemReader):
    """DCP's file reader over the JSON table of contents."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return read_contents(Path(self.path))


def read_contents(folder: Path) -> Metadata:
    """The table of contents as DCP's metadata. Raises CheckpointError where it is not one, or leads out of `folder`."""
    try:
        contents = json.loads((folder / CONTENTS).read_text())
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
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise CheckpointError(f"{folder / CONTENTS} is missing") from error
        raise StorageFault(f"{folder / CONTENTS} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / CONTENTS} is not a table of contents: {error}") from error
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


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole, after a power cut too, or not at all. Of two writers the last wins."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
