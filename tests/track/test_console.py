"""What a person sees, on a terminal and in a file."""

import io

from dist_alexnet.track.console import BarConsole, NullConsole, PlainConsole, open_console

TRAIN = {"train/loss": 2.1034, "train/top1": 0.312, "optim/lr": 0.01, "speed/images_per_s": 812.4, "data/wait_s": 0.1}
VAL = {"val/loss": 0.1, "val/top1": 0.9712, "val/top5": 0.999}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines() -> None:
    stream = io.StringIO()
    console = open_console(0, 1000, stream=stream)
    assert isinstance(console, PlainConsole)
    console.metrics(120, 1.92, TRAIN)
    console.metrics(125, 2.0, VAL)
    console.message("saved step 125")
    console.close()
    assert stream.getvalue().splitlines() == [
        "step 120/1000  epoch 1.92  loss 2.1034  top1 0.312  lr 0.01  812 images/s",
        "step 125/1000  epoch 2.00  validation  loss 0.1000  top1 0.9712  top5 0.9990",
        "saved step 125",
    ]


def test_other_ranks_say_nothing() -> None:
    stream = Terminal()
    console = open_console(1, 10, stream=stream)
    assert isinstance(console, NullConsole)
    console.metrics(1, 0.1, TRAIN)
    console.message("x")
    console.close()
    assert stream.getvalue() == ""


def test_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    console = open_console(0, 1000, step=100, stream=stream)
    assert isinstance(console, BarConsole)
    console.metrics(120, 1.92, TRAIN)
    console.metrics(125, 2.0, VAL)
    console.message("[red]not markup[/red]")
    console.close()
    console.close()
    shown = stream.getvalue()
    assert "125/1000" in shown
    assert "validation  loss 0.1000  top1 0.9712" in shown
    assert "[red]not markup[/red]" in shown
