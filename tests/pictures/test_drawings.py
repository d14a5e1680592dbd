"""Predictions, batches, neighbours, confusion and curves: what they compute, and what they draw of it."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dist_alexnet.pictures.batch import draw_batch, shown_inputs
from dist_alexnet.pictures.canvas import jpeg, plain, png
from dist_alexnet.pictures.confusion import confusion, confusion_svg, draw_confusion, most_confused
from dist_alexnet.pictures.curves import POINTS, curve_of, curve_svg, draw_curves, panels_of
from dist_alexnet.pictures.neighbours import Neighbours, draw_neighbours, nearest
from dist_alexnet.pictures.predictions import draw_predictions, likeliest_classes

HOSTILE = ["$\\frac{1}{0}$", "<script>alert(1)</script>", "a\x00b\nc", "日本" * 30, "&amp;\"'", "𓀀", ""]


def picture(seed: int, height: int = 20, width: int = 24) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def opened(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_likeliest_classes_and_ties() -> None:
    logits = np.array([[0, 3, 3, 1, -1, 2, 9], [5, 5, 5, 5, 5, 5, 5]], dtype=np.float32)
    first, second = likeliest_classes(logits)
    assert [number for number, _ in first] == [6, 1, 2, 5, 3]
    assert [number for number, _ in second] == [0, 1, 2, 3, 4]
    assert [part for _, part in second] == pytest.approx([1 / 7] * 5)
    softmax = np.exp(logits[0].astype(np.float64))
    assert [part for _, part in first] == pytest.approx((softmax / softmax.sum())[[6, 1, 2, 5, 3]].tolist())
    assert likeliest_classes(np.array([[1e4, -1e4]], dtype=np.float32))[0] == [(0, 1.0), (1, 0.0)]


def test_predictions_with_any_names(tmp_path: Path) -> None:
    """More than a row, of several sizes, with and without a right class; none of the names is a formula or a line."""
    images = [picture(number, 20 + number, 24) for number in range(7)]
    likeliest = [[(name, 0.3), ("other", 0.2)] for name in HOSTILE]
    to = tmp_path / "new folder" / "predictions.png"
    draw_predictions(images, HOSTILE, likeliest, [*HOSTILE[:-1], None], to)
    assert opened(to).shape[1] == 970
    assert [path.name for path in to.parent.iterdir()] == ["predictions.png"]  # and nothing half written


def test_the_bar_of_the_true_class_has_its_own_colour_and_length(tmp_path: Path) -> None:
    def coloured(name: str, part: float) -> tuple[int, int]:
        """(bluish, orange) pixels."""
        draw_predictions([np.full((9, 9, 3), 255, np.uint8)], ["x"], [[(name, part)]], ["right"], tmp_path / "one.png")
        red, _, blue = (opened(tmp_path / "one.png")[..., channel].astype(int) for channel in (0, 1, 2))
        return int((blue - red > 50).sum()), int((red - blue > 50).sum())

    right, wrong, half = coloured("right", 1.0), coloured("wrong", 1.0), coloured("right", 0.5)
    assert right[1] == 0 == wrong[0]
    assert right[0] == pytest.approx(wrong[1], rel=0.02)
    assert half[0] == pytest.approx(right[0] / 2, rel=0.1)


def test_a_good_picture_stays_where_drawing_fails(tmp_path: Path) -> None:
    to = tmp_path / "predictions.png"
    draw_predictions([picture(0)], ["x"], [[("a", 1.0)]], ["a"], to)
    before = to.read_bytes()
    with pytest.raises(TypeError, match="shape"):
        draw_predictions([picture(0)[..., :2]], ["x"], [[("a", 1.0)]], ["a"], to)
    assert to.read_bytes() == before


def test_inputs_are_shown_with_the_mean_put_back() -> None:
    mean_3SS = np.random.default_rng(0).uniform(0, 255, (3, 8, 8)).astype(np.float32)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 8, 8)).astype(np.uint8)
    shown = shown_inputs(pixels.astype(np.float32) - mean_3SS, mean_3SS)
    assert (np.stack(shown) == pixels.transpose(0, 2, 3, 1)).all()
    brighter = shown_inputs(pixels.astype(np.float32) - mean_3SS + 1000, mean_3SS)
    assert (np.stack(brighter) == 255).all()
    assert (shown_inputs(np.zeros((1, 3, 8, 8), np.float32), np.full((3, 1, 1), 7, np.float32))[0] == 7).all()


def test_a_batch_in_rows_of_eight(tmp_path: Path) -> None:
    for count in (1, 8, 19):
        draw_batch([picture(number, 64, 64) for number in range(count)], 12, tmp_path / f"{count}.png")
    heights = [opened(tmp_path / f"{count}.png").shape[0] for count in (1, 8, 19)]
    assert heights[0] == heights[1] < heights[2]


def test_the_nearest_are_the_nearest() -> None:
    random = np.random.default_rng(0)
    known, asked = random.normal(size=(50, 7)).astype(np.float32), random.normal(size=(3, 7)).astype(np.float32)
    known[30], known[20] = asked[1], asked[1]
    which, distance = nearest(asked, known, 6)
    for row in range(3):
        by_hand = [float(np.sqrt(((asked[row].astype(float) - one) ** 2).sum())) for one in known]
        assert distance[row] == pytest.approx(sorted(by_hand)[:6], rel=1e-5)
        assert [by_hand[one] for one in which[row]] == pytest.approx(distance[row].tolist(), rel=1e-5)
    assert which[1][:2].tolist() == [20, 30]
    assert distance[1][0] == 0
    assert nearest(asked, known[:2], 6)[0].shape == (3, 2)


def test_neighbours_are_drawn(tmp_path: Path) -> None:
    rows = [
        Neighbours(picture(0), HOSTILE[0], (picture(1), picture(2)), ("a", HOSTILE[3]), (0.1, 0.2)),
        Neighbours(picture(0), "b", (picture(1),), ("c",), (0.1,)),
    ]
    draw_neighbours(rows, tmp_path / "neighbours.png")
    assert opened(tmp_path / "neighbours.png").shape[:2] == (320, 440)


def test_confusion_counts_and_pairs() -> None:
    true, said = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2]), np.array([0, 1, 1, 1, 1, 0, 0, 1, 2])
    counts = confusion(true, said, 4)
    assert counts.tolist() == [[1, 2, 0, 0], [0, 2, 0, 0], [2, 1, 1, 0], [0, 0, 0, 0]]
    pairs = [(one.true, one.taken_for, one.images, one.of) for one in most_confused(counts)]
    assert pairs == [(0, 1, 2, 3), (2, 0, 2, 4), (2, 1, 1, 4)]
    assert most_confused(np.diag([3, 4])) == []
    assert len(most_confused(counts, 1)) == 1


@pytest.mark.parametrize("classes", [2, 30, 100])
def test_a_matrix_of_any_names(classes: int, tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(0, 9, (classes, classes))
    names = [HOSTILE[number % len(HOSTILE)] for number in range(classes)]
    draw_confusion(counts, names, tmp_path / "confusion.png")
    assert opened(tmp_path / "confusion.png").shape[0] >= 400
    svg = confusion_svg(counts, names)
    assert svg.startswith("<svg")
    assert "<script>" not in svg
    assert "currentColor" in svg
    assert "metadata" not in svg


def lines(steps: int) -> list[dict[str, float]]:
    return [{"step": step, "train/loss": 10 / step, "optim/lr": 0.1 ** (step // 50)} for step in range(1, steps + 1)]


def test_a_curve_is_what_was_logged() -> None:
    found = [*lines(9), {"step": 9, "val/top1": 0.5}, {"step": 10, "train/loss": float("nan")}]
    x, y = curve_of(found[::-1], "train/loss")
    assert x.tolist() == list(range(1, 10))
    assert y.tolist() == [10 / step for step in range(1, 10)]
    assert [panel.title for panel in panels_of(found)] == ["loss", "top-1 accuracy", "learning rate"]
    assert panels_of([{"step": 1, "train/loss": float("inf")}]) == []


def test_a_long_curve_is_brought_together_by_means() -> None:
    many = [{"step": step, "train/loss": float(step)} for step in range(10 * POINTS + 7)]
    x, y = curve_of(many, "train/loss")
    assert len(x) == POINTS
    assert (x == y).all()
    assert x[0] == pytest.approx(4.5)
    assert (np.diff(x) > 0).all()


def test_curves_are_drawn_with_restarts(tmp_path: Path) -> None:
    draw_curves(lines(200), [50, 120], tmp_path / "curves.png")
    assert opened(tmp_path / "curves.png").shape[1] == 800
    draw_curves([], [], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    panel = panels_of(lines(200))[0]
    plain_svg, with_restarts = curve_svg(panel, lines(200), []), curve_svg(panel, lines(200), [50, 120])
    assert with_restarts.count("stroke-dasharray") == plain_svg.count("stroke-dasharray") + 2


def test_words_fit_on_a_line() -> None:
    assert plain("a\x00b\r\n  c") == "a b c"
    assert plain("x" * 50, 10) == "x" * 9 + "…"
    assert plain("x" * 10, 10) == "x" * 10


def test_pixels_survive_a_png_and_nearly_a_jpeg(tmp_path: Path) -> None:
    pixels = np.kron(picture(3, 4, 4), np.ones((16, 16, 1), dtype=np.uint8))
    for name, data, most in (("a.png", png(pixels), 0), ("a.jpeg", jpeg(pixels), 40)):
        (tmp_path / name).write_bytes(data)
        found = opened(tmp_path / name).astype(int)
        assert found.shape == pixels.shape
        assert np.abs(found - pixels).mean() <= most
