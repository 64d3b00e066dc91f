"""``llmtaskpool list``: the tasks of a pool."""

from __future__ import annotations

from typing import Annotated

import typer

from llmtaskpool_operator.commands.task_output import (
    URL,
    Labels,
    Output,
    Url,
    asking,
    labels_of,
    show,
)


def list(
    state: Annotated[
        str | None, typer.Option(help="States, separated by commas, such as queued,running.")
    ] = None,
    label: Labels = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 20,
    url: Url = URL,
    output: Output = "text",
) -> None:
    """List tasks, the newest first."""
    labels = labels_of("list", label)
    with asking("list", url, output) as client:
        show(client.list(states=state, labels=labels, most=limit), output)
