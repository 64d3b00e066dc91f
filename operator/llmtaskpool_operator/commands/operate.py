"""``llmtaskpool operate``: the operator, in a pod or beside a kubeconfig."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Annotated

import typer

from llmtaskpool_operator.cluster.settings import OperatorSettingsError, load

BAD_INPUT = 2


def operate(
    namespaces: Annotated[
        str | None, typer.Option(help="Namespaces to serve, separated by commas; none: all.")
    ] = None,
    worker_image: Annotated[
        str | None, typer.Option(help="Image of workers whose pool names none.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of /livez, /readyz and /metrics.")
    ] = None,
    record: Annotated[
        str | None,
        typer.Option(
            help="Pools whose decisions about replicas go to stdout, for `replay`: "
            "NAMESPACE/NAME, separated by commas, or all."
        ),
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the operator; other settings are LLMTASKPOOL_OPERATOR_* variables.

    Uses the pod's service account, else the current context of your kubeconfig.
    """
    if log_level not in ("debug", "info", "warning", "error"):
        _refuse(f"--log-level {log_level!r}: use debug, info, warning or error")
    given = {
        "namespaces": namespaces,
        "worker_image": worker_image,
        "port": port,
        "record": record,
    }
    try:
        settings = load(**{name: value for name, value in given.items() if value is not None})
    except OperatorSettingsError as error:
        _refuse(str(error))
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for noisy in ("httpx", "httpcore", "kopf", "aiohttp.access"):
        logging.getLogger(noisy).setLevel("DEBUG" if log_level == "debug" else "WARNING")
    from llmtaskpool_operator.cluster.api_client import (
        NoCluster,  # after the options, which may be bad
    )
    from llmtaskpool_operator.cluster.operator import Operator, system_clocks

    try:
        asyncio.run(Operator(settings, system_clocks()).run())
    except NoCluster as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"port {settings.port}: {error.strerror}: use another --port")


def _refuse(fault: str) -> None:
    sys.stderr.write(f"llmtaskpool operate: {fault}\n")
    raise typer.Exit(BAD_INPUT)
