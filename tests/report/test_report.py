"""What a report says of a run, and what it does where something is missing or goes wrong."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from unittest.mock import patch

import pytest

from dist_alexnet.__main__ import run
from dist_alexnet.judging.figures import wilson
from dist_alexnet.report import story
from dist_alexnet.report.facts import bad_samples, facts_of, spent
from dist_alexnet.report.look import Looked
from dist_alexnet.report.story import report
from dist_alexnet.track.jsonl import read_lines
from shards.build import build_shards
from shards.errors import StorageFault
from tests.ranks.pictures import Noise
from tests.report.conftest import NAMES


class Read(HTMLParser):
    """Elements with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_from_outside_are_text(page: Path) -> None:
    found = Read(page)
    assert not [tag for tag, _ in found.elements if tag in ("script", "iframe", "object", "form", "base")]
    assert not [attrs for _, attrs in found.elements if any(name.startswith("on") for name in attrs)]
    for tag, attrs in found.elements:
        if tag in ("img", "link"):
            assert (attrs.get("src") or attrs.get("href") or "").startswith("data:"), tag
    policy = [attrs["content"] for tag, attrs in found.elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for name in NAMES:
        assert name in found.text
    assert "49" not in {word for line in found.text.splitlines() if "frac" in line for word in line.split()}
    assert "train-<b>&005" in found.text  # the key of the picture that did not decode
    assert "<img src=x onerror=" in found.text  # the cause of the last start


def test_figures_are_those_of_the_last_evaluation(page: Path, runs: Path) -> None:
    last = [line for line in read_lines(runs / "page" / "metrics.jsonl") if "val/top1" in line][-1]
    text = Read(page).text
    low, high = wilson(round(last["val/top1"] * 40), 40)
    assert f"{100 * last['val/top1']:.1f} %" in text
    assert (
        f"error {100 * (1 - last['val/top1']):.1f} %, between {100 * (1 - high):.1f} % and {100 * (1 - low):.1f} %"
        in text
    )
    assert "Validation at step 4" in text
    assert "specialisation" in text.lower()


def test_the_pictures_lie_in_the_run_folder_too(page: Path) -> None:
    names = {path.name for path in (page.parent / "pictures").iterdir()}
    kinds = ("filters", "batch", "predictions", "neighbours", "confusion", "curves")
    assert names == {f"report-{kind}.png" for kind in kinds}


def test_what_is_missing_is_said(bare: Path) -> None:
    text = " ".join(Read(bare).text.split())
    assert "No evaluation has been made: data.val is not set, so this run has no validation set." in text
    assert text.count("There is no checkpoint to look into: ") == 6
    assert "images a second" in text  # a curve


def test_the_network_looks_at_all_pictures_or_some_over_the_whole_set(
    page: Path, looked: list[Looked], runs: Path, tmp_path: Path
) -> None:
    """Over all of them it is right as often as the evaluation counted: it is the network that was trained."""
    val, train = looked
    last = [line for line in read_lines(runs / "page" / "metrics.jsonl") if "val/top1" in line][-1]
    assert (val.logits_NC.argmax(1) == val.true_N).mean() == pytest.approx(last["val/top1"])
    assert [key for key, bad in zip(train.keys, train.bad_N, strict=True) if bad] == ["train-<b>&005"]
    assert "all 40 pictures" in Read(page).text
    with (
        patch.object(story, "look", wraps=story.look) as look,
        patch.object(story, "neighbours_part", wraps=story.neighbours_part) as part,
    ):
        few = Read(report(runs / "page", tmp_path / "few.html", images=7)).text
    assert look.call_count == 2
    assert "7 of 40 pictures, spread over it" in few
    _, some, known, *_ = part.call_args.args
    assert some.ids_N.tolist() == [0, 5, 11, 17, 22, 28, 34]
    assert known.ids_N.tolist() == [0, 8, 17, 25, 34, 42, 51]
    assert some.features_ND.shape == (7, 512)
    assert some.features_ND == pytest.approx(val.features_ND[some.ids_N], rel=1e-5, abs=1e-6)


def test_lines_that_were_superseded_are_left_out(tmp_path: Path, runs: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs / "bare", folder)
    starts = [
        {"generation": 1, "event": "start", "step": 0, "from": None, "time_s": 0},
        {"generation": 2, "event": "start", "step": 5, "from": 1, "time_s": 100},
        {"generation": 3, "event": "start", "step": 5, "from": 1, "time_s": 200},
        {"generation": 3, "event": "end", "step": 7, "time_s": 260, "cause": "done", "code": 0},
    ]
    (folder / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in starts))
    steps = [(1, step) for step in range(1, 9)] + [(2, 6)] + [(3, 6), (3, 7)]
    lines = [{"generation": generation, "step": step, "train/loss": generation} for generation, step in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = facts_of(folder)
    assert [(line["generation"], line["step"]) for line in facts.lines] == [(1, n) for n in range(1, 6)] + [
        (3, 6),
        (3, 7),
    ]
    assert facts.restarts == [5]
    assert "7 steps" in Read(report(folder)).text


def test_a_picture_that_failed_in_every_evaluation_is_one(tmp_path: Path, runs: Path) -> None:
    """And lines that no start has written are not in the way: damage, and what is no text."""
    folder = tmp_path / "the run"
    shutil.copytree(runs / "bare", folder)
    torn = {"generation": 1, "url": "a.tar", "key": "\ud800", "cause": "torn", "split": "val"}
    lines = [{**torn, "step": 1}, {**torn, "step": 2}, {"generation": 1, "step": 2}, {**torn, "key": "b", "step": 2}]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with (folder / "metrics.jsonl").open("a") as file:
        for line in ({"train/loss": 1.0}, {"step": "3", "train/loss": 1.0}, {"step": 2, "train/loss": "oops"}):
            file.write(json.dumps({"generation": 1, **line}) + "\n")
    count, shards, first = bad_samples(facts_of(folder))
    assert (count, shards, [line["step"] for line in first]) == (2, [("a.tar", 2)], [1, 2])
    text = Read(report(folder)).text
    assert "2 in the ledger" in text
    assert f"dist-alexnet attempts '{folder}'" in text  # as a shell takes it


def test_a_set_of_other_classes_is_said_in_its_place(page: Path, runs: Path, tmp_path: Path) -> None:
    """The config of the newest start names another validation set than the network's."""
    folder = tmp_path / "run"
    shutil.copytree(runs / "page", folder)
    build_shards(Noise(), "val", str(tmp_path))
    config = (folder / "config.yaml").read_text()
    there = str(runs.parent / "shards" / "val.index.json")
    assert there in config
    assert "  views: 1\n" in config
    config = config.replace(there, str(tmp_path / "val.index.json")).replace("  views: 1\n", "  views: 10\n")
    (folder / "config.yaml").write_text(config)
    text = Read(report(folder)).text
    assert text.count(f"The val shards in {tmp_path} have the class {Noise().classes[0]!r}, which is none of") == 4
    assert "Specialisation" in text
    assert ", over 10 views (all that is shown below is of the centre)" in text
    assert "views" not in Read(page).text


def test_a_good_page_stays_where_storage_fails(page: Path, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = page.read_bytes()
    with patch.object(story, "look", side_effect=StorageFault("the store does not answer: try again")):
        assert run(["report", str(runs / "page")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: the store does not answer: try again"
    assert page.read_bytes() == before
    assert not [path for path in page.parent.iterdir() if path.name.startswith(".")]


def test_what_a_user_can_get_wrong(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        assert run(["report", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "holds no config.yaml" in said(str(tmp_path))
    assert "holds no config.yaml" in said(str(tmp_path / "none"))
    assert "give a file name in a folder that exists" in said(
        str(runs / "bare"), "--to", str(tmp_path / "no" / "a.html")
    )
    assert "give a file name in a folder that exists" in said(str(runs / "bare"), "--to", str(tmp_path))
    metrics = runs / "bare" / "metrics.jsonl"
    before = metrics.read_bytes()
    assert "expected a name that ends in .html" in said(str(runs / "bare"), "--to", str(metrics))
    assert metrics.read_bytes() == before
    assert "images" in said(str(runs / "bare"), "--images", "-1")
    with patch.dict(
        "os.environ", {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    ):
        assert "world size is 2, expected 1" in said(str(runs / "bare"))
    assert not list(tmp_path.iterdir())
    shutil.copytree(runs / "bare", tmp_path / "run", ignore=shutil.ignore_patterns("pictures"))
    ends = [line for line in (runs / "bare" / "attempts.jsonl").read_text().splitlines() if '"end"' in line]
    (tmp_path / "run" / "attempts.jsonl").write_text("\n".join(ends))
    assert "holds no attempts.jsonl with a start" in said(str(tmp_path / "run"))
    shutil.copy(runs / "bare" / "attempts.jsonl", tmp_path / "run")
    (tmp_path / "run" / "pictures").write_text("in the way")
    assert "pictures cannot be written (File exists)" in said(str(tmp_path / "run"))


def test_times_for_people() -> None:
    assert [spent(value) for value in (0.4, 59.6, 61, 3600, 90000)] == [
        "0 s",
        "1 min 0 s",
        "1 min 1 s",
        "1 h 0 min",
        "25 h 0 min",
    ]
