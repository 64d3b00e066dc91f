"""``llmtaskpool calibrate``: hands over to the worker, which has the engines."""

from __future__ import annotations

import importlib.util
import os
import sys

import typer

BAD_INPUT = 2


def calibrate(ctx: typer.Context) -> None:
    """Measure a model's decode steps and prefill on this machine and write its profile."""
    if importlib.util.find_spec("torch") is None:
        sys.stderr.write("llmtaskpool calibrate: torch is missing: install llmtaskpool[worker]\n")
        raise typer.Exit(BAD_INPUT)
    command = [sys.executable, "-m", "llmtaskpool_worker", "calibrate", *ctx.args]
    # In the place of this process: who ends it ends the engine too.
    os.execv(sys.executable, command)  # noqa: S606  our own program
