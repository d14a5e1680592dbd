"""What a network says of single pictures is what it says of them in an evaluation."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from dist_alexnet.__main__ import run
from dist_alexnet.judging.judge import judge
from dist_alexnet.judging.probabilities import read_answers
from dist_alexnet.parallel.mesh import Mesh
from dist_alexnet.predict import predict
from dist_alexnet.standing import _words
from shards.build import build_shards
from shards.index import ShardIndex
from tests.judging.networks import Made, make
from tests.ranks.pictures import Noise


@pytest.fixture(scope="module")
def network(alone: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("network"), 1, classes=Noise().classes)


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Three of the validation set's."""
    for number in (3, 7, 20):
        (tmp_path / f"val-{number:04d}.jpg").write_bytes(Noise().picture("val", number))
    return [str(tmp_path / f"val-{number:04d}.jpg") for number in (3, 7, 20)]


@pytest.mark.parametrize("views", [1, 10])
def test_it_is_what_evaluation_says(network: Made, pictures: list[str], tmp_path: Path, views: int) -> None:
    build_shards(Noise(), "val", str(tmp_path))
    file = str(tmp_path / "said.npz")
    judge([network.folder], str(tmp_path / "val.index.json"), views, probabilities=file)
    answers = read_answers(file)
    found = predict(network.folder, pictures, views)
    for row, picture in enumerate(pictures):
        expected = answers.probability_NC[answers.keys.index(Path(picture).stem)]
        np.testing.assert_allclose(found.probability_NC[row], expected, rtol=1e-4, atol=1e-6)
        best = found.likeliest(row, 5)
        assert [part for _, part in best] == sorted((part for _, part in best), reverse=True)
        assert sum(part for _, part in best) == pytest.approx(1)
        with Image.open(picture) as image:
            assert np.array_equal(found.centre_NSS3[row], np.asarray(image.convert("RGB"))[4:68, 4:68])


def test_the_command(network: Made, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png = tmp_path / "grey.png"
    Image.new("L", (90, 120), 130).save(png)
    out, drawn = tmp_path / "out.json", tmp_path / "drawn.png"
    command = ["predict", network.folder, pictures[0], str(png), "--top", "2", "--json", str(out)]
    assert run([*command, "--picture", str(drawn), "--views", "10"]) == 0
    found = json.loads(out.read_text())
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if not line.startswith(" ")] == [pictures[0], str(png)]
    assert [len(one["likeliest"]) for one in found["pictures"]] == [2, 2]
    first = found["pictures"][0]["likeliest"][0]
    assert said[1] == f"  {first['probability']:.4f}  {first['name']}"
    assert first["name"] == Noise().classes[first["class"]]
    assert (found["step"], found["views"]) == (7, 10)
    with Image.open(drawn) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200


def test_classes_in_words(alone: Mesh, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = tuple(f"word {number}, synonym" for number in range(5))
    made = make(tmp_path / "words", 2, classes=Noise().classes, words=words)
    assert run(["predict", made.folder, pictures[0], "--json", str(tmp_path / "out.json")]) == 0
    (one,) = json.loads((tmp_path / "out.json").read_text())["pictures"]
    assert {(best["name"], best["words"]) for best in one["likeliest"]} == set(zip(Noise().classes, words, strict=True))
    best = one["likeliest"][0]
    assert capsys.readouterr().out.splitlines()[1] == f"  {best['probability']:.4f}  {best['name']} {best['words']}"


def test_a_checkpoint_keeps_the_words_of_its_classes() -> None:
    """As `shards build imagenet` finds them in the devkit; not where one has none."""

    def words(*info: dict[str, Any]) -> list[str] | None:
        return _words(cast(ShardIndex, SimpleNamespace(class_info=info or None)))

    assert words({"ilsvrc_id": 2, "words": "tench, Tinca"}, {"words": "goldfish"}) == ["tench, Tinca", "goldfish"]
    assert words({"coarse": "fish", "words": "ray"}, {"coarse": "fish"}) is None
    assert words() is None


def test_without_names_there_are_numbers(
    alone: Mesh, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nameless = make(tmp_path / "nameless", 2)
    assert run(["predict", nameless.folder, *pictures]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "the checkpoint names no classes: these are their numbers"
    assert {line.split()[1] for line in said[2:7]} == set("01234")


def test_a_network_may_have_more_classes_than_names(
    alone: Mesh, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """network.num_classes is at least what the training set has."""
    made = make(tmp_path / "more", 2, classes=("a", "b", "c"), words=("cat", "dog", "fish"))
    assert run(["predict", made.folder, pictures[0]]) == 0
    said = capsys.readouterr().out.splitlines()
    assert {" ".join(line.split()[1:]) for line in said[1:6]} == {"a cat", "b dog", "c fish", "3", "4"}


def test_what_is_no_picture_is_said_in_a_line(
    network: Made, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(Noise().picture("val", 1)[:500])
    for more, said in (
        ([str(torn)], f"the picture {torn} does not decode ("),
        ([str(tmp_path / "none.jpg")], f"there is no picture {tmp_path}/none.jpg"),
        ([str(tmp_path)], f"{tmp_path}"),
        ([pictures[0], "--views", "2"], "--views is 2, expected 1"),
        ([pictures[0], "--picture", str(tmp_path / "no" / "x.png")], "--picture"),
        ([pictures[0], "--picture", str(tmp_path / "x.jpg")], "ends in .png"),
        ([pictures[0], "--json", str(tmp_path)], "--json"),
    ):
        assert run(["predict", network.folder, *more]) == 2, more
        shown = capsys.readouterr()
        (line,) = shown.err.splitlines()
        assert line.startswith("error: ")
        assert said in line
        assert shown.out == ""
