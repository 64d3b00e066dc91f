"""``llmtaskpool explain``: why a pool has the replicas and threads that it has, on one screen."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from llmtaskpool_operator.api.manifest_file import BadPool, parse_pool
from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.autoscaler.explanation import explanation

FAILED, BAD_INPUT = 1, 2


def explain(
    pool: Annotated[str, typer.Argument(help="Name of the pool.")],
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Namespace of the pool.")
    ] = "default",
    output: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Say why a pool has the size that it has, from its status alone.

    Uses the current context of your kubeconfig.
    """
    if output not in ("text", "json"):
        _refuse(f"--output {output!r}: use text or json", BAD_INPUT)
    found = asyncio.run(_read(namespace, pool))
    if output == "json":
        shown = found.status.wire() if found.status else {}
        named = {"name": found.metadata.name, "namespace": found.metadata.namespace}
        sys.stdout.write(json.dumps(named | {"status": shown}) + "\n")
    else:
        Console().print(explanation(found))


async def _read(namespace: str, name: str) -> LLMTaskPool:
    from llmtaskpool_operator.cluster.api_client import (  # after the options, which may be bad
        ApiFailure,
        KubernetesApi,
        NoCluster,
        connected,
    )

    try:
        async with connected() as client:
            body = await KubernetesApi(client).get(KIND, namespace, name)
    except NoCluster as error:
        _refuse(str(error), BAD_INPUT)
    except ApiFailure as failure:
        _refuse(f"the API server: {failure}", FAILED)
    if body is None:
        _refuse(f"there is no {KIND} {name} in namespace {namespace}: try -n", BAD_INPUT)
    try:
        return parse_pool(body)
    except BadPool as bad:
        _refuse(str(bad), FAILED)


def _refuse(fault: str, code: int) -> NoReturn:
    sys.stderr.write(f"llmtaskpool explain: {fault}\n")
    raise typer.Exit(code)
