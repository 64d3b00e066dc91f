"""``llmtaskpool crd``: the custom resource as a manifest, and as a page of its fields."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from llmtaskpool_operator.api.crdgen import as_yaml
from llmtaskpool_operator.api.reference import as_markdown


def crd(
    reference: Annotated[
        bool, typer.Option("--reference", help="Print docs/reference.md instead: every field.")
    ] = False,
) -> None:
    """Print the CustomResourceDefinition; crds/llmtaskpool.yaml is this."""
    sys.stdout.write(as_markdown() if reference else as_yaml())
