"""``llmtaskpool dead-letters``: tasks whose workers were lost with them, and another chance."""

from __future__ import annotations

from typing import Annotated

import typer

from llmtaskpool_operator.commands.task_output import URL, Output, Url, asking, show


def dead_letters(
    replay: Annotated[
        list[str] | None,
        typer.Option(help="Id of a dead letter that is to wait again, with no attempts; several."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 20,
    url: Url = URL,
    output: Output = "text",
) -> None:
    """List dead letters, the newest first; or have some of them wait again.

    Look at what one asks for before it is replayed: it took three workers along. Ends with 3 when
    an id is unknown, 2 when it is no dead letter.
    """
    with asking("dead-letters", url, output) as client:
        if replay:
            show([client.replay(task_id) for task_id in replay], output)
        else:
            show(client.dead_letters(most=limit), output)
