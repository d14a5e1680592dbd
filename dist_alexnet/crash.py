"""How a command ends badly: one line for the person, the traceback for the run folder, the exit code for scripts."""

import datetime
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_alexnet.environment import read_world
from shards.errors import DistAlexnetError, InputError


class CrashError(DistAlexnetError):
    """Something nobody foresaw; the traceback lies in a file."""


@contextmanager
def traceback_in(run_folder: Path) -> Iterator[None]:
    """Write the traceback of what fails inside to <run_folder>/logs/rank-NNNNN.log, where there is that folder.

    An InputError goes by as it is: its sentence says everything, and the folder may be another run's. What is not of
    the family becomes a CrashError that names the file; where it cannot be written it goes by as it is.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        log = _write_log(run_folder, error)
        if log is None or isinstance(error, DistAlexnetError):
            raise
        raise CrashError(f"{_one_line(error)}; the traceback is in {log}") from error


def exit_code_of(error: Exception, name: str) -> int:
    """Say on stderr what went wrong with the command `name`, and with which code the process should end.

    The user's mistakes are the same on every rank, so only rank 0 says them; anything else may be one rank's alone.
    """
    usage = getattr(error, "format_message", None)  # of typer: a command line that is wrong
    if usage is not None:
        command = getattr(getattr(error, "ctx", None), "command_path", name)
        say_error(f"{usage()} (see `{command} --help`)", only_rank_0=True)
        return InputError.exit_code
    if isinstance(error, DistAlexnetError):
        say_error(str(error), only_rank_0=error.exit_code == InputError.exit_code)
        return error.exit_code
    traceback.print_exception(error)
    return 1


def say_error(sentence: str, *, only_rank_0: bool) -> None:
    """One line `error: ...` on stderr; a rank other than 0 names itself."""
    rank = _rank()
    if rank == 0 or not only_rank_0:
        who = f"rank {rank}: " if rank else ""
        print(f"error: {who}{' '.join(sentence.split())}", file=sys.stderr, flush=True)


def say_on_first_rank(sentence: str) -> None:
    """One line on stderr that is no error."""
    if _rank() == 0:
        print(" ".join(sentence.split()), file=sys.stderr, flush=True)


def _write_log(run_folder: Path, error: Exception) -> Path | None:
    log = run_folder / "logs" / f"rank-{_rank():05d}.log"
    if not run_folder.is_dir():
        return None
    try:
        log.parent.mkdir(exist_ok=True)
        with log.open("a") as file:
            file.write(f"{datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')}\n")
            file.writelines(traceback.format_exception(error))
    except OSError:
        return None
    return log


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _rank() -> int:
    try:
        return read_world().rank
    except InputError:  # the very variables may be what is wrong
        return 0
