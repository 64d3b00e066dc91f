"""``llmtaskpool batch``: a file of requests is run; batches are listed, looked at and cancelled."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from llmtaskpool import Batch, Client, WaitTimeout

from llmtaskpool_operator.commands.task_output import (
    FAILED,
    TIMED_OUT,
    URL,
    WIDE,
    Labels,
    Output,
    Url,
    asking,
    labels_of,
    local_time,
    refuse,
    show_json,
)

INTERRUPTED = 130

batch = typer.Typer(
    name="batch",
    help="Files of requests: run one, list batches, look at one, cancel it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)

BatchId = Annotated[str, typer.Argument(help="A batch's id.")]


@batch.command()
def run(
    file: Annotated[
        Path | None, typer.Argument(help="Requests, one JSON object a line, as OpenAI's batches.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Id of a batch that was begun: go on with it.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Route of all lines; else the url of the first.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Where answers are written; else FILE.results.jsonl.")
    ] = None,
    errors: Annotated[
        Path | None, typer.Option(help="Where lines that failed are; else FILE.errors.jsonl.")
    ] = None,
    window: Annotated[str, typer.Option(help="How long it may take: 1h to 14d.")] = "24h",
    label: Labels = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Wait at most so many seconds; it goes on then.")
    ] = None,
    url: Url = URL,
    output: Output = "text",
) -> None:
    """Upload a file of requests, wait until they are answered, and write the results.

    After Ctrl-C the batch goes on: `llmtaskpool batch run --resume ID` waits for it again (with
    FILE too its results are named after that, and nothing is uploaded). Ends with 0 when every
    line was answered, 1 when one was not, 124 when it took too long.
    """
    if file is None and resume is None:
        refuse("batch run", "name a FILE, or a batch that was begun with --resume ID")
    with asking("batch run", url, output) as client:
        batch_id = resume or _begin(client, file or Path(), endpoint, window, label)
        stem = str(file) if file is not None else batch_id
        where = {
            "results": results or Path(f"{stem}.results.jsonl"),
            "errors": errors or Path(f"{stem}.errors.jsonl"),
        }
        code = 0
        try:
            ended = _wait(client, batch_id, timeout)
        except WaitTimeout as late:
            ended, code = late.last, TIMED_OUT
        except KeyboardInterrupt:
            sys.stderr.write(f"it goes on: llmtaskpool batch run --resume {batch_id}\n")
            raise typer.Exit(INTERRUPTED) from None
        written = {}
        if ended.ended:
            files = {"results": ended.output_file_id, "errors": ended.error_file_id}
            for name, file_id in files.items():
                if file_id is not None:
                    written[name] = str(_write(client, file_id, where[name]))
            good = ended.status == "completed" and not ended.counts.failed
            code = 0 if good else FAILED
        else:
            sys.stderr.write(f"it goes on: llmtaskpool batch run --resume {batch_id}\n")
        if output == "json":
            show_json([{**ended.raw, "files": written}])
        else:
            _say(ended, written)
        raise typer.Exit(code)


@batch.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 20,
    url: Url = URL,
    output: Output = "text",
) -> None:
    """List batches, the newest first."""
    with asking("batch list", url, output) as client:
        _show(client.list_batches(most=limit), output)


@batch.command()
def get(batch_id: BatchId, url: Url = URL, output: Output = "text") -> None:
    """Look at a batch. Ends with 3 when there is none of this id."""
    with asking("batch get", url, output) as client:
        _show([client.get_batch(batch_id)], output)


@batch.command()
def cancel(batch_id: BatchId, url: Url = URL, output: Output = "text") -> None:
    """Ask nothing more of a batch; what was answered stays. Ends with 3 when there is none."""
    with asking("batch cancel", url, output) as client:
        _show([client.cancel_batch(batch_id)], output)


def _begin(
    client: Client, file: Path, endpoint: str | None, window: str, label: list[str] | None
) -> str:
    """The id of a batch over a file, which is told at once: who knows it can go on with it."""
    metadata = labels_of("batch run", label) or None
    try:
        with file.open("rb") as lines:
            endpoint = endpoint or _url_of(file, lines.readline())
            lines.seek(0)
            with _bar("uploading", os.fstat(lines.fileno()).st_size):
                uploaded = client.upload(lines, file.name)
    except OSError as error:
        refuse("batch run", f"{file}: {error.strerror}: name a file that can be read")
    begun = client.create_batch(uploaded.id, endpoint, completion_window=window, metadata=metadata)
    sys.stderr.write(f"batch {begun.id}\n")
    return begun.id


def _url_of(file: Path, line: bytes) -> str:
    try:
        told = json.loads(line)
    except ValueError:
        told = None
    url = told.get("url") if isinstance(told, dict) else None
    if not isinstance(url, str):
        refuse("batch run", f"{file}: its first line has no url: write one, or give --endpoint")
    return url


@contextmanager
def _bar(what: str, total: float | None) -> Iterator[Callable[[float, float | None, str], None]]:
    """A progress bar on standard error, where that is a terminal: done, of how many, and a word."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        one = bar.add_task(what, total=total)

        def move(done: float, of: float | None, word: str) -> None:
            bar.update(one, completed=done, total=of, description=word)

        yield move


def _wait(client: Client, batch_id: str, timeout: float | None) -> Batch:
    with _bar("waiting", None) as move:

        def look(seen: Batch) -> None:
            counts = seen.counts
            failed = f", {counts.failed} failed" if counts.failed else ""
            done = counts.completed + counts.failed
            move(done, counts.total or None, seen.status + failed)

        if timeout is None:
            return client.wait_batch(batch_id, on_look=look)
        return client.wait_batch(batch_id, timeout, on_look=look)


def _write(client: Client, file_id: str, path: Path) -> Path:
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as into:
            client.download(file_id, into)
        part.replace(path)
    except OSError as error:
        refuse("batch run", f"{path}: {error.strerror}: name another place, and --resume")
    return path


def _say(ended: Batch, written: dict[str, str]) -> None:
    counts = ended.counts
    sys.stdout.write(
        f"{ended.status}: {counts.completed} of {counts.total} answered, {counts.failed} failed\n"
    )
    for name, path in written.items():
        sys.stdout.write(f"{name}: {path}\n")
    for error in ((ended.raw.get("errors") or {}).get("data") or [])[:5]:
        sys.stdout.write(f"  {error['message']}\n")


def _show(batches: Sequence[Batch], output: str) -> None:
    """A table, or a line of JSON for each."""
    if output == "json":
        show_json([one.raw for one in batches])
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    table = Table(box=None)
    longest = max((len(one.id) for one in batches), default=0)
    table.add_column("batch", no_wrap=True, min_width=longest)
    for heading in ("endpoint", "status", "answered", "failed", "of", "created"):
        table.add_column(heading)
    for one in batches:
        counts = (one.counts.completed, one.counts.failed, one.counts.total)
        table.add_row(
            one.id, one.endpoint, one.status, *map(str, counts), local_time(one.created_at)
        )
    console.print(table)
