"""Classes matched by name or number, or refused; labels of one's own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from dist_alexnet.judging.labels import matched_classes, read_labels
from shards.errors import InputError
from shards.index import ShardIndex

WNIDS = ("n01440764", "n01443537", "n01484850")


@dataclass
class Set:
    """All of an index that is asked."""

    classes: tuple[str, ...] | None
    num_classes: int
    split: str = "val"
    folder: str = "data"


def matched(own: tuple[str, ...] | int, network: tuple[str, ...] | None, count: int = 3) -> tuple[list[int], str]:
    index = Set(None, own) if isinstance(own, int) else Set(own, len(own))
    found = matched_classes(cast(ShardIndex, index), network, count, "runs/a")
    return found.number_of.tolist(), found.how


def test_how_classes_are_matched() -> None:
    assert matched(WNIDS, WNIDS) == ([0, 1, 2], "the same names")
    assert matched(WNIDS[::-1], WNIDS) == ([2, 1, 0], "by name")
    assert matched(WNIDS[2:], WNIDS) == ([2], "by name")
    assert matched(2, WNIDS)[0] == matched(WNIDS, None)[0][:2] == [0, 1]
    many = tuple(f"n{number:08d}" for number in range(12))
    folders = tuple(sorted(str(number) for number in range(12)))
    assert folders[2] == "10"  # as `shards build folder` numbers ImageNet-V2's folders
    assert matched(folders, many, 12)[0] == [int(name) for name in folders]
    assert matched(folders, None, 12)[0] == [int(name) for name in folders]
    assert matched(folders, folders, 12) == (list(range(12)), "the same names")


@pytest.mark.parametrize(
    ("own", "network", "said"),
    [
        (("cat", "dog", "fox"), WNIDS, "the class 'cat', which is none of the 3 of runs/a (such as 'n01440764')"),
        (("0", "1", "2"), ("ant", "bee", "cow"), "the class '0'"),  # digits are no animals
        (("0", "1", "2"), WNIDS[::-1], "the class '0'"),  # of which order are the numbers?
        (("0", "1", "3"), WNIDS, "the class '0'"),
        (("1", "01", "2"), WNIDS, "the class '1'"),
        (("a", "b", "c", "d"), ("a", "b", "c"), "have 4 classes, runs/a knows 3"),
    ],
)
def test_other_classes_are_refused(own: tuple[str, ...], network: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError) as caught:
        matched(own, network)
    assert said in str(caught.value)


def written(folder: Path, document: Any) -> str:
    file = folder / "real.json"
    file.write_text(json.dumps(document))
    return str(file)


def test_a_list_goes_by_the_numbers_of_the_files(tmp_path: Path) -> None:
    labels = read_labels(written(tmp_path, [[1, 0], [], [2]]), 3, WNIDS, 3)
    keys = ("ILSVRC2012_val_00000003", "n01440764_ILSVRC2012_val_00000002", "val/ILSVRC2012_val_00000001")
    truth = labels.truth(keys)
    assert list(zip(truth.image_P.tolist(), truth.class_P.tolist(), strict=True)) == [(0, 2), (2, 0), (2, 1)]
    with pytest.raises(
        InputError, match=r"order of ILSVRC2012_val_00000001 and so on, and the set has the key 'cat-1'"
    ):
        labels.truth(("cat-1", *keys[1:]))
    with pytest.raises(InputError, match="the set has the key 'ILSVRC2012_val_00000004'"):
        labels.of("ILSVRC2012_val_00000004")


def test_an_object_goes_by_keys_and_names(tmp_path: Path) -> None:
    labels = read_labels(written(tmp_path, {"b": ["n01484850", 0], "a": []}), 3, WNIDS, 3)
    truth = labels.truth(("a", "b", "c"))
    assert list(zip(truth.image_P.tolist(), truth.class_P.tolist(), strict=True)) == [(1, 0), (1, 2)]
    with pytest.raises(InputError, match="labels of 'b', which is no key of the set"):
        labels.truth(("a", "c"))
    with pytest.raises(InputError, match="no label for any of the 2 images"):
        read_labels(written(tmp_path, {}), 2, WNIDS, 3).truth(("a", "c"))


@pytest.mark.parametrize(
    ("document", "classes", "said"),
    [
        ([[0]], WNIDS, "are 1, and the set has 3 images"),
        ([[0], [3], []], WNIDS, "name the class 3, expected a number of 0..2"),
        ([[0], [-1], []], WNIDS, "name the class -1"),
        ([[0], [True], []], WNIDS, "name the class True"),
        ([[0], ["n01440764"], []], WNIDS, "name the class 'n01440764', expected a number"),
        ([[0], [1], []], WNIDS[::-1], "places among sorted classes"),
        ([[0], [1], []], ("0", "1", "10"), "places among sorted classes"),
        ({"a": ["n0"]}, WNIDS, "name the class 'n0', expected a number of 0..2, or a name"),
        ({"a": 1}, WNIDS, "neither a list of lists nor an object"),
        ([0, 1, 2], WNIDS, "neither a list of lists nor an object"),
        ("labels", WNIDS, "neither a list of lists nor an object"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, document: Any, classes: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_labels(written(tmp_path, document), 3, classes, 3)
    assert said in str(caught.value)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "real.json"
    for torn in ("[[0], ", "[" * 100_000):
        file.write_text(torn)
        with pytest.raises(InputError, match="are not JSON"):
            read_labels(str(file), 3, WNIDS, 3)
    with pytest.raises(InputError, match="there are no labels"):
        read_labels(str(tmp_path / "none.json"), 3, WNIDS, 3)
