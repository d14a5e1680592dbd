"""`dist-alexnet`, the same as `python -m dist_alexnet`."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from dist_alexnet.cli import app


def main() -> None:
    """Run the command line and leave with its exit code: 0 done, 2 wrong input, 1 anything else."""
    try:
        code = run(sys.argv[1:])
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    leave(code)


def leave(code: int) -> NoReturn:
    """End the process. Where ranks have talked, without taking the interpreter down around them: gloo's threads, which
    other libraries still hold, now and then abort a process there whose work is done and on disk.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if "torch.distributed" in sys.modules:
        os._exit(code)
    sys.exit(code)


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code; what went wrong is on stderr. Lets SystemExit pass."""
    try:
        # not standalone: a wrong command line is told like every other mistake, in one line and by one rank
        return int(app(args=list(args) or ["--help"], standalone_mode=False) or 0)
    except typer.Abort:  # Ctrl-C
        return 130
    except Exception as error:
        from dist_alexnet.crash import exit_code_of

        return exit_code_of(error, "dist-alexnet")


if __name__ == "__main__":
    main()
