"""``llmtaskpool submit``: hand a task to a pool, and wait for it where that is asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from llmtaskpool_operator.commands.task_output import (
    URL,
    Labels,
    Output,
    Url,
    asking,
    labels_of,
    refuse,
    show,
)
from llmtaskpool_operator.commands.wait import wait_for


def submit(
    kind: Annotated[
        str | None, typer.Argument(help="chat, generate, embed, or another kind.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model's name.")] = None,
    text: Annotated[
        str | None, typer.Option("--input", help="A text; for chat it is the user's message.")
    ] = None,
    arguments: Annotated[str | None, typer.Option(help="A JSON object.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="The whole task as JSON, as POST /v1/tasks takes it; or -.")
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="W: more goes earlier; 1 is ordinary.")
    ] = None,
    after: Annotated[
        list[str] | None, typer.Option(help="Id of a task that must succeed first; several.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: said twice, it is the same task.")
    ] = None,
    label: Labels = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="With --wait: at most so long.")] = 3600.0,
    url: Url = URL,
    output: Output = "text",
) -> None:
    """Hand a task to a pool; its id is printed.

    Ends with 0; with --wait: 1 when it did not succeed, 124 when it took too long.
    """
    if (kind is None) == (file is None):
        refuse("submit", "name a KIND, or give the whole task with --file")
    body: dict[str, Any] = {} if file is None else _read(file)
    given = {
        "kind": kind,
        "model": model,
        "input": [{"role": "user", "content": text}] if kind == "chat" and text else text,
        "arguments": None if arguments is None else _object("--arguments", arguments),
        "weight": weight,
        "depends_on": after,
        "idempotency_key": key,
        "labels": labels_of("submit", label) or None,
    }
    body |= {name: value for name, value in given.items() if value is not None}
    with asking("submit", url, output) as client:
        task = client.submit_body(body)
        if wait:
            raise typer.Exit(wait_for(client, [task.id], timeout, output))
        if output == "json":
            show([task], output)
        else:
            sys.stdout.write(task.id + "\n")


def _read(file: Path) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        refuse("submit", f"--file {file}: {why}: name a file that can be read")
    return _object(f"--file {file}", text)


def _object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        refuse("submit", f"{option}: it is no JSON ({error.msg} at letter {error.pos})")
    if not isinstance(value, dict):
        refuse("submit", f"{option}: it is {type(value).__name__}: write a JSON object")
    return value
