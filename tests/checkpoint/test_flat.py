"""The table of contents: plain JSON that leads nowhere else, and holds every element once."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_alexnet.checkpoint.contents import CONTENTS, check_file_name, read_contents
from dist_alexnet.checkpoint.flat import FlatChunk
from dist_alexnet.checkpoint.place import Place
from dist_alexnet.errors import CheckpointError

GOOD = {
    "version": 1,
    "tensors": {
        "fc8.bias/weight": {
            "dtype": "float32",
            "elements": 10,
            "chunks": [[0, 4, "a.distcp", 0, 900], [4, 6, "b.distcp", 0, 950]],
        },
        "fc8.bias/momentum": {"dtype": "float32", "elements": 4, "chunks": [[0, 4, "a.distcp", 900, 901]]},
    },
}


def contents(folder: Path, values: Any) -> Place:
    (folder / CONTENTS).write_text(values if isinstance(values, str) else json.dumps(values))
    return Place.at(folder)


def with_chunks(*chunks: list[Any]) -> dict[str, Any]:
    return {"version": 1, "tensors": {"t": {"dtype": "float32", "elements": 10, "chunks": list(chunks)}}}


def test_a_table_is_read_as_it_stands(tmp_path: Path) -> None:
    found = read_contents(contents(tmp_path, GOOD))
    assert found.state_dict_metadata.keys() == GOOD["tensors"].keys()  # type: ignore[attr-defined]
    stored = found.state_dict_metadata["fc8.bias/weight"]
    assert stored.size == torch.Size([10])
    assert stored.properties.dtype == torch.float32
    assert [(chunk.offsets[0], chunk.sizes[0]) for chunk in stored.chunks] == [(0, 4), (4, 6)]
    places = {
        (index.fqn, index.offset[0]): (place.relative_path, place.offset, place.length)
        for index, place in found.storage_data.items()
    }
    assert places == {
        ("fc8.bias/weight", 0): ("a.distcp", 0, 900),
        ("fc8.bias/weight", 4): ("b.distcp", 0, 950),
        ("fc8.bias/momentum", 0): ("a.distcp", 900, 901),
    }


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "..", "", ".", "a/b", "a/../b", "a/"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not a file name"):
        check_file_name(name)
    with pytest.raises(CheckpointError, match="is not a file name"):
        read_contents(contents(tmp_path, with_chunks([0, 10, name, 0, 9])))


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        ([], "chunks of 0 elements, expected 10"),
        ([[0, 9, "a", 0, 9]], "chunks of 9 elements, expected 10"),
        ([[0, 11, "a", 0, 9]], "chunks of 11 elements, expected 10"),
        ([[1, 9, "a", 0, 9]], "a chunk of 9 elements from 1, expected one from 0"),
        ([[0, 4, "a", 0, 9], [5, 5, "a", 0, 9]], "5 elements from 5, expected one from 4"),
        ([[0, 6, "a", 0, 9], [5, 5, "a", 0, 9]], "5 elements from 5, expected one from 6"),
        ([[0, 10, "a", 0, 9], [0, 10, "b", 0, 9]], "expected one from 10"),
        ([[0, 10, "a", 0, 9], [10, 0, "b", 0, 9]], "a chunk of 0 elements"),
        ([[0, 12, "a", 0, 9], [12, -2, "b", 0, 9]], "a chunk of -2 elements"),
    ],
)
def test_a_table_with_holes_or_doubles_is_refused(tmp_path: Path, chunks: list[list[Any]], says: str) -> None:
    """What no chunk holds would stay as it was drawn, without a word."""
    with pytest.raises(CheckpointError, match=says):
        read_contents(contents(tmp_path, with_chunks(*chunks)))


@pytest.mark.parametrize(
    "values",
    [
        "",
        "{",
        "[]",
        "5",
        '"text"',
        "{}",
        {"version": 2, "tensors": {}},
        {"version": 1},
        {"version": 1, "tensors": []},
        {"version": 1, "tensors": {"t": {}}},
        {"version": 1, "tensors": {"t": {"dtype": "load", "elements": 0, "chunks": []}}},
        {"version": 1, "tensors": {"t": {"dtype": "nothing", "elements": 0, "chunks": []}}},
        with_chunks([0, 10, "a"]),
        with_chunks([0, "10", "a", 0, 9]),
        with_chunks([0, 10, 5, 0, 9]),
        with_chunks([None, 10, "a", 0, 9]),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, values: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"{CONTENTS} is not a table of contents") as caught:
        read_contents(contents(tmp_path, values))
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        read_contents(Place.at(tmp_path))


def test_a_pickle_is_not_a_table(tmp_path: Path) -> None:
    (tmp_path / CONTENTS).write_bytes(pickle.dumps(GOOD))
    with pytest.raises(CheckpointError, match="is not a table of contents"):
        read_contents(Place.at(tmp_path))


def test_a_chunk_only_carries_its_range() -> None:
    values = torch.arange(4.0)
    chunk = FlatChunk(values, 3, 10)
    assert chunk.size() == (10,)
    assert chunk.__get_tensor_shard__(None) is values  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="it only carries a range"):
        chunk.sum()
