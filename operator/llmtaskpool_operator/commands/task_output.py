"""What the commands about tasks have in common: where they ask, what they print, how they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, NoReturn

import typer
from llmtaskpool import Client, PoolError, Refused, Task
from llmtaskpool.answers import DEFAULT_URL, URL_VARIABLE

FAILED, BAD_INPUT, NOT_FOUND, TIMED_OUT = 1, 2, 3, 124

Url = Annotated[
    str,
    typer.Option(
        envvar=URL_VARIABLE,
        help="Where the pool or the worker answers; its key is LLMTASKPOOL_API_KEY.",
    ),
]
Output = Annotated[str, typer.Option(help="text or json (one object per line).")]
Labels = Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be given several times.")]
URL = DEFAULT_URL
WIDE = 240
"""Columns of what no terminal shows: it is read by programs and in logs."""


@contextmanager
def asking(command: str, url: str, output: str) -> Iterator[Client]:
    """A client; its errors end the command with a line and a code."""
    if output not in ("text", "json"):
        refuse(command, f"--output {output!r}: use text or json")
    try:
        with Client(url, patience_seconds=0) as client:  # who asks again is the one who types
            yield client
    except PoolError as error:
        unknown = isinstance(error, Refused) and error.status == 404
        refuse(command, str(error), NOT_FOUND if unknown else BAD_INPUT)


def local_time(at: float) -> str:
    """Seconds since the epoch as people here write it."""
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S}"


def refuse(command: str, why: str, code: int = BAD_INPUT) -> NoReturn:
    """One line on standard error, and the end."""
    sys.stderr.write(f"llmtaskpool {command}: {why}\n")
    raise typer.Exit(code)


def labels_of(command: str, given: Sequence[str] | None) -> dict[str, str]:
    """By name. Ends the command when one is no label."""
    found = {}
    for one in given or ():
        name, sign, value = one.partition("=")
        if not (name and sign):
            refuse(command, f"--label {one!r}: write NAME=VALUE")
        found[name] = value
    return found


def show_json(found: Sequence[Mapping[str, Any]]) -> None:
    """A line for each."""
    for one in found:
        sys.stdout.write(json.dumps(one, ensure_ascii=False) + "\n")


def show(tasks: Sequence[Task], output: str) -> None:
    """A table, or a line of JSON for each."""
    if output == "json":
        show_json([task.raw for task in tasks])
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    table = Table(box=None)
    # An id is there to be copied: whatever has to be cut, it is not.
    longest = max((len(task.id) for task in tasks), default=0)
    table.add_column("task", no_wrap=True, min_width=longest)
    for heading in ("kind", "state", "attempts", "since", "why"):
        table.add_column(heading)
    for task in tasks:
        why = "" if task.error is None else task.error.message
        at = local_time(task.ended_at or task.submitted_at)
        table.add_row(task.id, task.kind, task.state, str(task.attempts), at, why)
    console.print(table)
