"""torch.distributed.checkpoint over ranges of flattened tensors, with a JSON table of contents.

Every tensor is cut on dim 0, so what a rank holds of it, a ZeRO partition included, is one contiguous range of the
flattened whole: a 1-D chunk (offset, length). Any layout and any ZeRO stage can then load what any other saved, and
torch's planner does the rest. The table of contents is JSON in place of torch's pickle (contents.py), and torch reads
the chunks with weights_only=True, so reading a checkpoint runs none of its author's code.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from dist_alexnet.checkpoint.contents import CONTENTS, FileRecord, contents_of, read_contents
from dist_alexnet.checkpoint.place import Place
from shards import storage


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


class FlatWriter(StorageWriter):
    """DCP's plan written as one file a rank, each tensor as torch.save has it, and a JSON table of contents.

    `written` names the files of this rank with what was meant to be in them. moved: called after each tensor.
    """

    def __init__(self, folder: Place, moved: Callable[[], None] = lambda: None) -> None:
        self.folder, self._moved = folder, moved
        self.written: list[FileRecord] = []

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [replace(plan, storage_data=f"__{rank}_0.distcp") for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results: list[WriteResult] = []

        def fill(file: BinaryIO) -> None:
            hashed = Hashed(file)
            results.clear()
            for item in plan.items:
                begin = hashed.bytes
                torch.save(_of_its_own(planner.resolve_data(item)), cast(IO[bytes], hashed))
                length = hashed.bytes - begin
                results.append(WriteResult(item.index, length, _StorageInfo(plan.storage_data, begin, length)))
                self._moved()
            self.written = [hashed.record(plan.storage_data)]

        if plan.items:
            storage.write_atomic((self.folder / plan.storage_data).url, fill)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        places = {result.index: result.storage_data for part in results for result in part}
        table = json.dumps(contents_of(metadata, places)).encode()
        storage.write_atomic((self.folder / CONTENTS).url, table)
        self.written.append(FileRecord(CONTENTS, len(table), hashlib.sha256(table).hexdigest()))


class FlatReader(StorageReader):
    """DCP's plan read by ranges, over the JSON table of contents."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        self.places: dict[MetadataIndex, _StorageInfo] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return read_contents(self.folder)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.places = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            at = self.places[item.storage_index]
            data = storage.read_range((self.folder / at.relative_path).url, at.offset, at.length)
            whole = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # never anybody's code
            (start,), (length,) = item.storage_offsets, item.lengths
            part, target = whole[start : start + length], planner.resolve_tensor(item).detach()
            if part.shape != target.shape:
                raise ValueError(f"{at.relative_path} holds {len(part)} elements of {length} from {start}")
            target.copy_(part)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


class Hashed:
    """Hands on what is written, and knows how much it was and its sha256."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        pass

    def record(self, name: str) -> FileRecord:
        return FileRecord(name, self.bytes, self._digest.hexdigest())


def _of_its_own(values: Any) -> Tensor:
    """On the CPU, and no view into something larger: torch.save writes all of what a view looks into."""
    here: Tensor = values.detach().cpu()
    return here.clone() if here.untyped_storage().nbytes() != here.nbytes else here
