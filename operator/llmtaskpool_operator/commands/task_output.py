"""What the commands about tasks have in common: where they ask, what they print, how they end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, NoReturn

import typer

from llmtaskpool_operator.workers.tasks import (
    DEFAULT_URL,
    URL_VARIABLE,
    Refused,
    Tasks,
    Unreachable,
    key_of_environment,
)

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
def asking(command: str, url: str, output: str) -> Iterator[Tasks]:
    """A client; its errors end the command with a line and a code."""
    if output not in ("text", "json"):
        refuse(command, f"--output {output!r}: use text or json")
    try:
        with Tasks(url, key_of_environment()) as tasks:
            yield tasks
    except Unreachable as error:
        refuse(command, str(error))
    except Refused as error:
        refuse(command, error.message, NOT_FOUND if error.status == 404 else BAD_INPUT)


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


def show(tasks: Sequence[dict[str, Any]], output: str) -> None:
    """A table, or a line of JSON for each."""
    if output == "json":
        for task in tasks:
            sys.stdout.write(json.dumps(task, ensure_ascii=False) + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    table = Table(box=None)
    # An id is there to be copied: whatever has to be cut, it is not.
    longest = max((len(task["id"]) for task in tasks), default=0)
    table.add_column("task", no_wrap=True, min_width=longest)
    for heading in ("kind", "state", "attempts", "since", "why"):
        table.add_column(heading)
    for task in tasks:
        error = task["error"]
        at = datetime.fromtimestamp(task["ended_at"] or task["submitted_at"]).astimezone()
        table.add_row(
            *(task["id"], task["kind"], task["state"], str(task["attempts"])),
            *(f"{at:%Y-%m-%d %H:%M:%S}", "" if error is None else error["message"]),
        )
    console.print(table)
