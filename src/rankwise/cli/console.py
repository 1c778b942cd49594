"""Printing: tables for people, one JSON object for programs, progress on standard error."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from rankwise.files import json_text
from rankwise.progress import Progress, silent

PIPE_WIDTH = 1000  # characters: more than any table needs, so that nothing is folded
errors = Console(stderr=True, highlight=False)


def print_json(content: Any) -> None:
    """Print one JSON object to standard output."""
    sys.stdout.write(json_text(content))


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    """Print a table that fits the terminal; in a pipe it is as wide as it needs.

    The columns in ``right`` are aligned right.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(title, markup=False, soft_wrap=True)
    console.print(table)


def short(number: float) -> str:
    """A count with three digits and a unit: 40.6M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def counted(number: int, noun: str) -> str:
    """1 trial, 2 trials."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(fraction: float | None) -> str:
    """A fraction as a percentage with two decimals; a dash for None."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


@contextmanager
def progress_bars(quiet: bool) -> Iterator[Progress]:
    """A progress callback: bars on a terminal, one plain line per stage in a pipe, nothing if quiet."""
    if quiet and not errors.is_terminal:
        yield silent
        return
    if not errors.is_terminal:
        seen: set[str] = set()

        def line(stage: str, done: int, total: int) -> None:
            if stage not in seen:
                seen.add(stage)
                errors.print(f"{stage} ...", markup=False)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=errors, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def bar(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in bars.tasks:  # a new stage begins when those before it are over
                    bars.update(task.id, completed=task.total)
                tasks[stage] = bars.add_task(stage, total=total or None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield bar
