"""The command line: ``llmtaskpool-worker serve``."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from llmtaskpool_worker.assembly import logs, settings
from llmtaskpool_worker.assembly.settings import SettingsError
from llmtaskpool_worker.http_api.auth import KeysUnreadable

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)

_PR_SET_PDEATHSIG = 1
BAD_INPUT = 2
TURN_SECONDS = 0.0005
"""After so long a thread that holds Python's lock is asked to let the event loop go on. Each read
from a socket gives the lock away: with Python's 5 ms, a hundred of them beside two threads that
parse bodies took the loop half a second."""


@app.callback()
def _several_commands() -> None:
    """The worker of an LLMTaskPool: queues, engines and their HTTP servers."""


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(help="name=source[,task=embed][,option=value]; may be given several times."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address of the data port.")] = None,
    port: Annotated[int | None, typer.Option(help="Data port; 0 takes a free one.")] = None,
    control_host: Annotated[str | None, typer.Option(help="Address of the control port.")] = None,
    control_port: Annotated[int | None, typer.Option(help="Control port; 0: a free one.")] = None,
    worker_id: Annotated[str | None, typer.Option(help="Name of this worker.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads (N) of the compute lane.")] = None,
    io_threads: Annotated[int | None, typer.Option(help="Threads (N) of the io lane.")] = None,
    queue: Annotated[
        str | None, typer.Option(help="memory, sqlite:PATH of a file, or a Redis URL.")
    ] = None,
    queue_limit: Annotated[int | None, typer.Option(help="Tasks that may wait per lane.")] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Where converted weights go.")] = None,
    grace_seconds: Annotated[float | None, typer.Option(help="Time to finish on SIGTERM.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    gate: Annotated[
        bool | None, typer.Option("--gate", help="Hold requests until workers are ready.")
    ] = None,
    die_with_parent: Annotated[
        bool, typer.Option("--die-with-parent", help="End when the process that started it ends.")
    ] = False,
) -> None:
    """Serve models and tasks until SIGTERM; other settings are LLMTASKPOOL_* variables.

    Standard output has one JSON line per event: listening (with both ports), loading, ready.
    """
    if die_with_parent:
        end_with_parent()
    given = {
        "models": tuple(model) if model else None,
        "host": host,
        "port": port,
        "control_host": control_host,
        "control_port": control_port,
        "worker_id": worker_id,
        "threads": threads,
        "io_threads": io_threads,
        "queue": queue,
        "queue_limit": queue_limit,
        "cache_dir": cache_dir,
        "grace_seconds": grace_seconds,
        "log_level": log_level,
        "gate": gate,
    }
    try:
        chosen = settings.load(**{k: v for k, v in given.items() if v is not None})
        logs.configure(chosen.log_level)
        # After the settings, which may be wrong.
        if chosen.gate:
            from llmtaskpool_worker.assembly.gate import run
        else:
            from llmtaskpool_worker.assembly.worker import run

        sys.setswitchinterval(TURN_SECONDS)
        code = uvloop.run(run(chosen))
    except (SettingsError, KeysUnreadable, OSError) as error:
        sys.stderr.write(f"llmtaskpool-worker: {error}\n")
        raise typer.Exit(BAD_INPUT) from None
    raise typer.Exit(code)


@app.command(
    "calibrate",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def calibrate(ctx: typer.Context) -> None:
    """Measure a model's curves on this machine and write its profile."""
    from llmtaskpool_worker.calibration.command import calibrate_command  # it imports rich

    one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    one.command()(calibrate_command)
    one(args=ctx.args, prog_name="llmtaskpool calibrate")


def end_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends; leave when that has happened already.

    The signal goes out when the parent's *thread* that started this process ends: start workers
    from a thread that lives as long as their parent.
    """
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "--die-with-parent is not possible here: leave it out")
    if os.getppid() != parent:
        raise SystemExit(1)


def main() -> None:
    """Entry point of ``llmtaskpool-worker``."""
    app()


if __name__ == "__main__":
    main()
