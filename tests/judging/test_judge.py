"""What one network or several make of a set, in one process: against plain float64, and against each other."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dist_alexnet.__main__ import run
from dist_alexnet.data.statistics import IMAGENET, write_statistics
from dist_alexnet.judging import asking
from dist_alexnet.judging.judge import judge
from dist_alexnet.judging.probabilities import read_answers
from dist_alexnet.parallel.mesh import Mesh
from shards.build import build_shards
from shards.errors import InputError
from shards.index import read_index
from shards.reader import ShardReader
from tests.judging.networks import Made, answers_in_float64, make
from tests.ranks.pictures import Noise

CLASSES = Noise().classes
TORN = 11


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> str:
    """37 pictures of 72 x 72, one of them torn, in shards of uneven sizes."""
    folder = tmp_path_factory.mktemp("set")
    build_shards(Noise(TORN), "val", str(folder), samples_per_shard=10)
    return str(folder / "val.index.json")


@pytest.fixture(scope="module")
def networks(alone: Mesh, tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    """Three, of two presets, and of two sizes of crops."""
    folder = tmp_path_factory.mktemp("networks")
    return [
        make(folder / "a", 1, classes=CLASSES),
        make(folder / "b", 2, "alexnet-2012-paper", classes=CLASSES, image_size=67),
        make(folder / "c", 3),
    ]


@pytest.mark.parametrize("views", [1, 10])
@pytest.mark.parametrize("which", [0, 1])
def test_answers_are_those_of_plain_float64(
    networks: list[Made], val: str, tmp_path: Path, which: int, views: int
) -> None:
    expected = answers_in_float64(networks[which], val, views)
    out = tmp_path / "said.npz"
    judged = judge([networks[which].folder], val, views, probabilities=str(out))
    said = read_answers(str(out))
    np.testing.assert_allclose(said.probability_NC, expected, rtol=1e-4, atol=1e-6)
    labels = read_index(val).samples["label"]
    counts = counts_of(expected, labels)
    assert 0 < counts[0] < 37  # of networks that say the same of every image it would say nothing
    assert len(set(expected.argmax(1).tolist())) > 1
    assert (judged.figures.top1_correct, judged.figures.top5_correct) == counts
    decoded = expected.any(1)
    assert judged.figures.loss == pytest.approx(float(-np.log(expected[decoded, labels[decoded]]).mean()), rel=1e-5)
    assert (judged.figures.images, judged.figures.bad_images, len(judged.faults)) == (37, 1, 1)
    assert (said.keys[judged.faults[0].position], said.set_digest) == (f"val-{TORN:04d}", said.set_digest)


def counts_of(probability_NC: np.ndarray, label_N: np.ndarray) -> tuple[int, int]:
    """By sorting; a picture that did not decode is wrong."""
    order = np.argsort(-probability_NC, axis=1, kind="stable")
    hits = (order == label_N[:, None]) & probability_NC.any(1)[:, None]
    return int(hits[:, :1].sum()), int(hits[:, :5].sum())


def test_a_mean_picture_is_not_mirrored_with_the_picture(alone: Mesh, val: str, tmp_path: Path) -> None:
    """As in 2012. Its left and right differ here, so that a mirrored one would be seen."""
    mean_SS3 = np.repeat(np.linspace(40, 200, 72)[None, :, None], 72, axis=0).repeat(3, axis=2).astype(np.float32)
    own = replace(IMAGENET, mean_image=mean_SS3.transpose(2, 0, 1).copy())
    statistics = write_statistics(str(tmp_path), "train", {"resize": 72, "images": 37, "undecoded": 0}, own)
    made = make(tmp_path / "network", 4, mean="image", statistics=statistics)
    centre = mean_SS3[4:68, 4:68].astype(np.float64)
    out = tmp_path / "said.npz"
    judge([made.folder], val, 10, probabilities=str(out))
    expected = answers_in_float64(made, val, 10, centre)
    np.testing.assert_allclose(read_answers(str(out)).probability_NC, expected, rtol=1e-3, atol=1e-5)
    wrong = answers_in_float64(made, val, 10, centre[:, ::-1])
    assert np.abs(wrong - expected).max() > 0.01


def test_an_ensemble_is_the_mean_of_its_parts_now_and_later(networks: list[Made], val: str, tmp_path: Path) -> None:
    folders, files = [made.folder for made in networks], [str(tmp_path / f"{number}.npz") for number in range(3)]
    for folder, file in zip(folders, files, strict=True):
        judge([folder], val, 10, probabilities=file)
    weights = (1.0, 0.0, 3.0)
    now = judge(folders, val, 10, weights, probabilities=str(tmp_path / "now.npz"))
    later = judge(files, val, weights=weights, probabilities=str(tmp_path / "later.npz"))
    mixed = judge([folders[0], files[1], folders[2]], val, 10, weights)
    parts = [read_answers(file).probability_NC.astype(np.float64) for file in files]
    mean_NC = parts[0] / 4 + parts[2] * 3 / 4
    assert (read_answers(str(tmp_path / "now.npz")).probability_NC == mean_NC.astype(np.float32)).all()
    assert now.figures == later.figures == mixed.figures
    labels = read_index(val).samples["label"]
    assert (now.figures.top1_correct, now.figures.top5_correct) == counts_of(mean_NC, labels)
    decoded = mean_NC.any(1)
    assert now.figures.loss == pytest.approx(float(-np.log(mean_NC[decoded, labels[decoded]]).mean()), rel=1e-12)
    assert [one["weight"] for one in now.inputs] == [0.25, 0, 0.75]
    assert [fault.position for fault in later.faults] == [fault.position for fault in now.faults]
    assert later.inputs[2]["made_of"][0]["checkpoint"] == now.inputs[2]["checkpoint"]
    equal = judge(files, val).figures
    assert (equal.top1_correct, equal.top5_correct) == counts_of(np.mean(parts, axis=0), labels)


def test_one_network_by_the_centre_is_ranked_by_its_logits(
    networks: list[Made], val: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two logits that give one probability in fp32 are no tie; two that are equal fall to the lower class."""

    def near(logits_rC: torch.Tensor) -> torch.Tensor:
        tied = torch.zeros_like(logits_rC)
        tied[:, 3] = 1e-8  # above the others, and below what a probability of 0.2 can show
        return tied

    forward = asking._Asking.forward

    def patched(self: Any, *batch: torch.Tensor) -> Any:
        logits = self.trained.module.logits
        with monkeypatch.context() as here:
            here.setattr(self.trained.module, "logits", lambda *given: (near(logits(*given)[0]), 0))
            return forward(self, *batch)

    monkeypatch.setattr(asking._Asking, "forward", patched)
    threes, zeros = (int((np.delete(read_index(val).samples["label"], torn_row(val)) == k).sum()) for k in (3, 0))
    alone = judge([networks[0].folder], val).figures
    assert alone.top1_correct == threes
    averaged = judge([networks[0].folder] * 2, val).figures  # one probability for all: class 0
    assert averaged.top1_correct == zeros


def torn_row(val: str) -> int:
    reader = ShardReader(read_index(val))
    return next(row for row in range(37) if reader.key(row) == f"val-{TORN:04d}")


def test_the_command_says_it_all(
    networks: list[Made], val: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, out, file = networks[0].folder, networks[1].folder, tmp_path / "out.json", tmp_path / "said.npz"
    assert run(["evaluate", a, "--shards", val, "--json", str(out), "--per-class"]) == 0
    figures = json.loads(out.read_text())
    said = capsys.readouterr().out.splitlines()
    assert said[0] == (
        f"loss {figures['loss']:.4f}  top1 {figures['top1']:.4f}  top5 {figures['top5']:.4f}  images 37  "
        f"keys {figures['keys_digest']}"
    )
    assert f"error  top1 {100 * figures['top1_error']:.2f} % (" in said[1]
    assert "1 pictures did not decode" in said[2]
    assert all(any(name in line for line in said[3:]) for name in CLASSES)
    assert figures["keys_digest"] == f"{read_index(val).keys_digest:016x}"
    assert sum(row["images"] for row in figures["per_class"]) == 37
    assert sum(row["top1_correct"] for row in figures["per_class"]) == figures["top1_correct"]
    assert figures["faults"][0]["key"] == f"val-{TORN:04d}"
    command = ["evaluate", a, b, "--shards", val, "--weights", "1,3", "--views", "10", "--probabilities", str(file)]
    assert run([*command, "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert [(one["weight"], one["step"], one["views"]) for one in figures["inputs"]] == [(0.25, 7, 10), (0.75, 7, 10)]
    assert file.exists()
    before = file.read_bytes()
    capsys.readouterr()
    assert run(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_figures_are_said_where_the_file_cannot_be_written(
    networks: list[Made], val: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After hours the disk is full, or another has written there: what is there stays, and the figures are known."""
    out, file = tmp_path / "out.json", tmp_path / "said.npz"
    command = ["evaluate", networks[0].folder, "--shards", val, "--probabilities", str(file), "--json", str(out)]

    def full(file: Any, **arrays: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as here:
        here.setattr(np, "savez", full)
        assert run(command) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("loss ")
    assert "No space left on device" in shown.err
    assert json.loads(out.read_text())["images"] == 37
    assert not file.exists()
    asked = asking.ask

    def and_another_writes(*given: Any, **named: Any) -> Any:
        file.write_bytes(b"another's")
        return asked(*given, **named)

    monkeypatch.setattr("dist_alexnet.judging.judge.ask", and_another_writes)
    assert run(command) == 2
    shown = capsys.readouterr()
    assert shown.out.startswith("loss ")
    assert "is there already" in shown.err
    assert file.read_bytes() == b"another's"


def test_answers_come_to_rank_0_batch_by_batch(networks: list[Made], val: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, the scores of a big set would be there several times."""
    gather, sent = torch.distributed.gather_object, []

    def counted(*given: Any, **named: Any) -> None:
        if given:  # loading a checkpoint gathers, too, by name
            sent.append(len(given[0][0]))
        gather(*given, **named)

    monkeypatch.setattr(torch.distributed, "gather_object", counted)
    judge([networks[0].folder], val)
    assert sorted(sent) == [7, 10, 10, 10]  # evaluate.batch_size is 10


def test_a_network_may_have_more_classes_than_names(networks: list[Made], val: str, tmp_path: Path) -> None:
    """As one whose set lost some. Its file is read again, and it is averaged with one that names all."""
    fewer = make(tmp_path / "fewer", 6, classes=CLASSES, num_classes=6)
    file = str(tmp_path / "fewer.npz")
    alone = judge([fewer.folder], val, 10, probabilities=file)
    assert judge([file], val).figures == alone.figures
    named = make(tmp_path / "named", 6, classes=(*CLASSES, "another"), num_classes=6)
    both = judge([file, named.folder], val, 10)
    assert both.figures.images == 37


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--weights", "1,2"], "--weights has 2 numbers, expected one for each of 1"),
        (["--weights", "-1"], "expected numbers of at least 0"),
        (["--weights", "0"], "expected numbers of at least 0"),
        (["--weights", "nan"], "expected numbers of at least 0"),
        (["--weights", "1e400"], "expected numbers of at least 0"),
        (["--weights", "half"], "--weights is 'half', expected numbers with commas"),
        (["--views", "5"], "--views is 5, expected 1"),
        (["--labels", "none.json"], "there are no labels none.json"),
        (["--probabilities", "said.txt"], "does not end with .npz"),
        (["--probabilities", "nowhere/said.npz"], "folder that exists"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(
    networks: list[Made], val: str, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", networks[0].folder, "--shards", val, *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_networks_of_other_classes_are_not_averaged(networks: list[Made], val: str, tmp_path: Path) -> None:
    other = make(tmp_path / "other", 5, classes=("hue-0", "hue-1", "hue-2", "hue-4", "hue-3"))
    with pytest.raises(InputError, match=r"class 3 is 'hue-4' in .*other and 'hue-3' in .*a: average networks"):
        judge([networks[0].folder, other.folder], val)
    more = make(tmp_path / "more", 5, num_classes=6)
    with pytest.raises(InputError, match=r"knows 6 classes and .* 5"):
        judge([networks[0].folder, more.folder], val)
    strange = make(tmp_path / "strange", 5, classes=("a", "b", "c", "d", "e"))
    with pytest.raises(InputError, match=r"the class 'hue-0', which is none of the 5 of .*strange .such as 'a'."):
        judge([strange.folder], val)
    (tmp_path / "strange" / "checkpoints" / "step-00000007" / "g0001" / "COMMIT").unlink()
    with pytest.raises(InputError, match="holds no committed checkpoint"):
        judge([networks[0].folder, strange.folder], val)


def test_a_file_of_another_set_is_refused(networks: list[Made], val: str, tmp_path: Path) -> None:
    file = str(tmp_path / "said.npz")
    judge([networks[0].folder], val, probabilities=file)
    build_shards(Noise(), "val", str(tmp_path / "train"), samples_per_shard=7, seed=1)
    same_keys = str(tmp_path / "train" / "val.index.json")
    assert read_index(same_keys).keys_digest == read_index(val).keys_digest
    with pytest.raises(InputError, match="in another order or with other labels"):
        judge([file], same_keys)
    build_shards(Noise(), "train", str(tmp_path / "train"), samples_per_shard=50)
    with pytest.raises(InputError, match=r"answers about 37 images .* are 131 with .*: name the set"):
        judge([file, networks[0].folder], str(tmp_path / "train" / "train.index.json"))
