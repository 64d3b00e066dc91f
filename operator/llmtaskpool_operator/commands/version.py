"""``llmtaskpool version``: what is installed."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from typing import Annotated, Any

import typer

_PIECES = ("torch", "transformers", "kopf", "kubernetes", "pydantic", "starlette")
BAD_INPUT = 2


def version(
    output: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Versions of llmtaskpool and of the pieces that are installed beside it."""
    if output not in ("text", "json"):
        sys.stderr.write(f"llmtaskpool version: --output {output!r}: use text or json\n")
        raise typer.Exit(BAD_INPUT)
    found: dict[str, Any] = {"llmtaskpool": metadata.version("llmtaskpool")}
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    for name in _PIECES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if output == "json":
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        for name, is_version in found.items():
            sys.stdout.write(f"{name:13} {is_version or 'not installed'}\n")
