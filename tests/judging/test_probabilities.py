"""The file of probabilities: what goes in comes out, and nothing else is believed."""

import io
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_alexnet.judging.averaging import Mean, part_weights
from dist_alexnet.judging.probabilities import Answers, read_answers, write_answers
from shards.errors import InputError

KEYS = ("a/1", "b-ü", "c\udce4")  # the last one is no UTF-8


def answers(**changed: Any) -> Answers:
    probability_NC = np.array([[0.5, 0.25, 0.25], [0, 0, 0], [0.1, 0.2, 0.7]], dtype=np.float32)
    made = Answers(KEYS, np.array([0, 1, 2]), probability_NC, ("x", "y", "z"), ({"checkpoint": "runs/a", "step": 3},))
    return replace(made, **changed)


def test_in_and_out_again(tmp_path: Path) -> None:
    file = str(tmp_path / "said.npz")
    write_answers(file, answers())
    found = read_answers(file)
    assert (found.keys, found.classes, found.made_of) == (KEYS, ("x", "y", "z"), answers().made_of)
    assert (found.probability_NC == answers().probability_NC).all()
    assert found.probability_NC.dtype == np.float32
    assert found.bad.tolist() == [False, True, False]
    write_answers(file, answers(classes=None))
    assert read_answers(file).classes is None
    with np.load(file, allow_pickle=False) as plain:  # by numpy alone
        assert plain["probabilities"].shape == (3, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["said.npz"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(file: Any, **arrays: Any) -> None:
        file.write(b"PK")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="not finite"):
        write_answers(str(tmp_path / "said.npz"), answers(probability_NC=np.full((3, 3), np.nan, dtype=np.float32)))
    monkeypatch.setattr(np, "savez", torn)
    with pytest.raises(Exception, match="No space left"):
        write_answers(str(tmp_path / "said.npz"), answers())
    assert list(tmp_path.iterdir()) == []


def arrays_of(file: Path) -> dict[str, Any]:
    with np.load(file, allow_pickle=False) as plain:
        return {name: plain[name] for name in plain.files}


def about(file: Path, **changed: Any) -> np.ndarray:
    return np.array(json.dumps({**json.loads(arrays_of(file)["about"].item()), **changed}).encode())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: {"probabilities": np.array([[0.5, np.nan, 0.5]] * 3, np.float32)}, "no probabilities in the row of"),
        (lambda f: {"probabilities": np.array([[2, -1, 0]] * 3, np.float32)}, "no probabilities in the row of"),
        (lambda f: {"probabilities": np.full((3, 3), 0.5, np.float32)}, "sum 1.5, expected 1"),
        (lambda f: {"probabilities": np.full((2, 3), 1 / 3, np.float32)}, "expected fp32 for 3 images and 3 classes"),
        (lambda f: {"probabilities": np.full((3, 3), 1 / 3)}, "float64, expected fp32"),
        (lambda f: {"probabilities": np.full((3, 4), 0.25, np.float32)}, "expected fp32 for 3 images and 3 classes"),
        (lambda f: {"labels": np.array([0, 1, 3])}, "labels outside 0..2"),
        (lambda f: {"labels": np.array([0.0, 1, 2])}, "has labels of float64"),
        (lambda f: {"labels": np.array([0, 2, 1])}, "was changed"),
        (lambda f: {"keys": np.array([b"a", b"a", b"c"])}, "has an image twice"),
        (lambda f: {"keys": np.array([{"a": 1}, None, print], dtype=object)}, "cannot be read (ValueError"),
        (lambda f: {"classes": np.array([b"a", b"b", b"c", b"d"])}, "names 4 classes, expected at most 3"),
        (lambda f: {"about": about(f, version=9)}, "has version 9, expected 1"),
        (lambda f: {"about": np.array(b"{}")}, "cannot be read (KeyError"),
        (lambda f: {"about": np.array(b"[1]")}, "cannot be read (TypeError"),
        (lambda f: {"about": np.array(b"[" * 100_000)}, "cannot be read (RecursionError"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    file = tmp_path / "said.npz"
    write_answers(str(file), answers())
    np.savez(file, **{**arrays_of(file), **change(file)})
    with pytest.raises(InputError) as caught:
        read_answers(str(file))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    """zipfile, its decompressors and numpy have errors of many kinds."""
    file = tmp_path / "said.npz"
    write_answers(str(file), answers())
    content = file.read_bytes()
    header = io.BytesIO()
    endless = {"descr": "<f4", "fortran_order": False, "shape": (10**13, 3)}
    np.lib.format.write_array_header_1_0(header, endless)
    arrays = arrays_of(file)
    arrays.pop("probabilities")
    np.savez(file, **arrays)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("probabilities.npy", header.getvalue())
    with pytest.raises(InputError, match="cannot be read"):
        read_answers(str(file))
    first = content.index(b"PK\x01\x02")  # of the list of members: its flags, and how they are compressed
    for place in (first + 8, first + 10):
        file.write_bytes(content[:place] + b"\x21" + content[place + 1 :])
        with pytest.raises(InputError, match="cannot be read"):
            read_answers(str(file))


def test_weights_are_parts_of_a_finite_sum() -> None:
    assert part_weights((1, 3), 2) == (0.25, 0.75)
    with pytest.raises(InputError, match="with a sum above it"):
        part_weights((1e308, 1e308), 2)  # each would be 0 of it


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "opened",))

    file, buffer = tmp_path / "said.npz", io.BytesIO()
    file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="cannot be read"):
        read_answers(str(file))
    write_answers(str(tmp_path / "good.npz"), answers())
    np.savez(buffer, **{**arrays_of(tmp_path / "good.npz"), "keys": np.array([Bomb()] * 3, dtype=object)})
    file.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="cannot be read"):
        read_answers(str(file))
    file.write_bytes((tmp_path / "good.npz").read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read"):
        read_answers(str(file))
    with pytest.raises(InputError, match="there is no file"):
        read_answers(str(tmp_path / "none.npz"))
    assert not (tmp_path / "opened").exists()


def test_a_mean_is_taken_in_fp64() -> None:
    """1e-9 of one part does not vanish beside 1/3 of the other; a picture that one part lost is bad in the mean."""
    one = np.full((3, 3), 1 / 3, dtype=np.float32)
    other = np.tile(np.array([[1, 1e-9, 0]], dtype=np.float32), (3, 1))
    other[2] = 0
    mean, weights = Mean(), part_weights((1, 1), 2)
    for table, weight in zip((one, other), weights, strict=True):
        mean.add(answers(probability_NC=table), weight, {"checkpoint": "x"})
    total_NC, bad_N = mean.total()
    assert total_NC.dtype == np.float64
    assert bad_N.tolist() == [False, False, True]
    assert total_NC[0, 1] > total_NC[0, 2]
    assert np.float32(total_NC[0, 1]) == np.float32(total_NC[0, 2])
    assert total_NC[2].tolist() == [0, 0, 0]
    with pytest.raises(InputError, match=r"y.npz and x are about other images or labels"):
        mean.add(answers(keys=("a", "b", "c")), 0.5, {"probabilities": "y.npz"})
