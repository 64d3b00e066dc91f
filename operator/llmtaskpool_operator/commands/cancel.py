"""``llmtaskpool cancel``: tasks that nobody wants any more."""

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
    refuse,
    show,
)

MOST = 10_000
NOT_ENDED = "blocked,delayed,queued,running"


def cancel(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of tasks.")] = None,
    label: Labels = None,
    url: Url = URL,
    output: Output = "text",
) -> None:
    """Cancel tasks by id, or all that have not ended and have these labels.

    Tasks that depend on them fail. Ends with 3 when one is unknown.
    """
    labels = labels_of("cancel", label)
    if bool(ids) == bool(labels):
        refuse("cancel", "name ids of tasks, or one or more --label")
    with asking("cancel", url, output) as client:
        if labels:
            ids = [one.id for one in client.list(states=NOT_ENDED, labels=labels, most=MOST)]
        show([client.cancel(task_id) for task_id in ids or ()], output)
