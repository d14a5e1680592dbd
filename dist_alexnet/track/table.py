"""Tables for people: on a terminal as wide as it is, in a file as wide as they need."""

import sys
from collections.abc import Sequence
from typing import TextIO

FILE_WIDTH = 160


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO | None = None
) -> None:
    """Print rows of text under a title, on stdout by default. Cells are taken as they are, without markup."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stream = stream or sys.stdout
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=stream, width=None if stream.isatty() else FILE_WIDTH).print(table)
