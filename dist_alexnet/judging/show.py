"""A judgement for people."""

from dist_alexnet.judging.figures import ClassFigures, Figures, wilson
from dist_alexnet.judging.judge import Judgement
from dist_alexnet.track.table import print_table

SHOWN_CLASSES = 10  # of the best and of the worst


def lines(judgement: Judgement) -> list[str]:
    """The figures, what they are of, and what was left out."""
    figures = judgement.figures
    said = [
        f"loss {figures.loss:.4f}  top1 {figures.top1:.4f}  top5 {figures.top5:.4f}  "
        f"images {figures.images}  keys {judgement.keys_digest}",
        f"error  {_error('top1', figures.top1_correct, figures.images)}  "
        f"{_error('top5', figures.top5_correct, figures.images)}  (in brackets: 95 %)",
    ]
    if figures.bad_images:
        said.append(f"{figures.bad_images} pictures did not decode and count as wrong, not in the loss")
    if judgement.labels is not None:
        said.append(f"labels of {judgement.labels}: {figures.unlabelled_images} images without any are left out")
    if len(judgement.inputs) > 1:
        said.append(f"probabilities of {len(judgement.inputs)} parts, averaged:")
        said += [f"  {one['weight']:.4f}  {_name(one)}" for one in judgement.inputs]
    if not judgement.classes_matched.startswith("the same"):
        said.append(f"classes matched {judgement.classes_matched}")
    return said


def show_classes(figures: Figures) -> None:
    """A table of the best and the worst classes, by top-1; all of them where they are few."""
    ranked = sorted(figures.per_class, key=lambda row: (-row.top1_correct / row.images, row.number))
    few = len(ranked) <= 2 * SHOWN_CLASSES
    shown = ranked if few else ranked[:SHOWN_CLASSES] + ranked[-SHOWN_CLASSES:]
    names = {row.number: _class(row) for row in figures.per_class}
    table = [
        (
            _class(row),
            str(row.images),
            f"{row.top1_correct / row.images:.4f}",
            f"{row.top5_correct / row.images:.4f}",
            ""
            if row.wrong_answer is None
            else f"{names.get(row.wrong_answer, row.wrong_answer)} ({row.wrong_answers})",
        )
        for row in shown
    ]
    title = "classes" if few else f"the {SHOWN_CLASSES} best and the {SHOWN_CLASSES} worst of {len(ranked)} classes"
    print_table(title, ("class", "images", "top1", "top5", "most frequent wrong answer"), table)


def _error(name: str, correct: int, images: int) -> str:
    low, high = wilson(correct, images)
    return f"{name} {100 * (1 - correct / images):.2f} % ({100 * (1 - high):.2f} to {100 * (1 - low):.2f})"


def _class(row: ClassFigures) -> str:
    return str(row.number) if row.name is None else row.name


def _name(one: dict[str, object]) -> str:
    if "probabilities" in one:
        return str(one["probabilities"])
    return f"{one['checkpoint']}  step {one['step']}  top1 {one['top1']:.4f}  top5 {one['top5']:.4f}"
