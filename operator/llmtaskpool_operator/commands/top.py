"""``llmtaskpool top``: a live view of the pools of a cluster."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.live import Live

from llmtaskpool_operator.api.manifest_file import BadPool, parse_pool
from llmtaskpool_operator.api.names import API_VERSION, KIND
from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.autoscaler.explanation import overview

if TYPE_CHECKING:
    from llmtaskpool_operator.cluster.api_client import KubernetesApi

FAILED, BAD_INPUT = 1, 2


def top(
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="One namespace; none: all.")
    ] = "",
    every: Annotated[
        float, typer.Option(min=0.5, max=3600, help="Seconds between two looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    output: Annotated[str, typer.Option(help="text or json (a line for each look).")] = "text",
) -> None:
    """Show all pools and why they changed last, until Ctrl-C.

    Uses the current context of your kubeconfig.
    """
    if output not in ("text", "json"):
        _refuse(f"--output {output!r}: use text or json", BAD_INPUT)
    asyncio.run(_show(namespace, every, once=once, as_json=output == "json"))


async def _show(namespace: str, every: float, *, once: bool, as_json: bool) -> None:
    from llmtaskpool_operator.cluster.api_client import (  # after the options, which may be bad
        ApiFailure,
        KubernetesApi,
        NoCluster,
        connected,
    )

    console = Console()
    try:
        async with connected() as client:
            api = KubernetesApi(client)
            if as_json or once:
                while True:
                    pools = await _pools(api, namespace)
                    if as_json:
                        sys.stdout.write(json.dumps([_plain(pool) for pool in pools]) + "\n")
                        sys.stdout.flush()
                    else:
                        console.print(overview(pools))
                    if once:
                        return
                    await asyncio.sleep(every)
            with Live(overview(()), console=console, auto_refresh=False) as live:
                while True:
                    live.update(overview(await _pools(api, namespace)), refresh=True)
                    await asyncio.sleep(every)
    except NoCluster as error:
        _refuse(str(error), BAD_INPUT)
    except ApiFailure as failure:
        _refuse(f"the API server: {failure}", FAILED)


async def _pools(api: KubernetesApi, namespace: str) -> list[LLMTaskPool]:
    found: list[LLMTaskPool] = []
    for body in (await api.list(KIND, namespace)).items:
        try:
            found.append(parse_pool({"apiVersion": API_VERSION, "kind": KIND, **body}))
        except BadPool:
            continue  # of a newer version of the CRD than this command
    return sorted(found, key=lambda pool: (pool.metadata.namespace, pool.metadata.name))


def _plain(pool: LLMTaskPool) -> dict[str, object]:
    status = pool.status.wire() if pool.status else {}
    return {"namespace": pool.metadata.namespace, "name": pool.metadata.name, "status": status}


def _refuse(fault: str, code: int) -> NoReturn:
    sys.stderr.write(f"llmtaskpool top: {fault}\n")
    raise typer.Exit(code)
