"""``llmtaskpool local``: a pool on this machine, with the same loop as on a cluster."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from llmtaskpool_worker.contract import keys_in

from llmtaskpool_operator.api.manifest_file import BadPool, pool_from_file
from llmtaskpool_operator.local.passed_over import Instead, faults
from llmtaskpool_operator.local.settings import (
    demo_pool,
    machine_cores,
    pool_from_options,
)
from llmtaskpool_operator.local.upstream_server import BadCommand, command_of

BAD_INPUT = 2
DEFAULT_PORT = 8080


def local(
    pool: Annotated[
        Path | None, typer.Option(help="A file with an LLMTaskPool; else the options below.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="name=source[,task=embed][,option=value]; several times for several models. "
            "Default: SmolLM2-135M-Instruct and all-MiniLM-L6-v2."
        ),
    ] = None,
    min_replicas: Annotated[
        int | None, typer.Option(min=0, help="The least worker processes. [default: 1]")
    ] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The most worker processes. [default: 2; in front of a server: 1, as two would "
            "share what it can take]",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Port to listen on; 0 takes a free one. [default: 8080; with --demo: 0]",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the keys that clients must show, one a line.")
    ] = None,
    tenant_keys_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder with a file of keys, one a line, for each tenant that the pool names "
            "(spec.tenants.named)."
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Where converted weights are kept.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder that io tasks may read and write; none: no such.")
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            help="A command that serves the models whose source is openai:URL, such as "
            "'vllm serve MODEL --port 8001': started with the pool, and ended after it. No shell "
            "runs it."
        ),
    ] = None,
    upstream_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A host beside this machine that openai:URL may be on, as host or host:port; may "
            "be given several times."
        ),
    ] = None,
    divide_cores: Annotated[
        bool,
        typer.Option(help="Divide the cores among max-replicas, so that workers don't contend."),
    ] = True,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="On Ctrl-C, running tasks are given this long.")
    ] = 10.0,
    queue: Annotated[
        Path | None,
        typer.Option(
            help="File in which tasks survive a crash and a restart; one worker owns it, so the "
            "pool has one. None: tasks are kept in memory."
        ),
    ] = None,
    queue_url_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the URL of a Redis or Valkey on which the workers share their tasks, "
            "such as redis://user:password@host:6379/0: what spec.queue.redis is on a cluster."
        ),
    ] = None,
    trusted_ca_file: Annotated[
        Path | None,
        typer.Option(help="Certificate authorities (PEM) that workers trust beside the public."),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="File to which decisions about replicas are added, for `replay`."),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Do a burst of mixed work, sum it up, and end.")
    ] = False,
    output: Annotated[str, typer.Option(help="text or json (one object per line).")] = "text",
) -> None:
    """Run a pool on this machine: workers rise and fall with the work, and each step is explained.

    The API is OpenAI's, at http://HOST:PORT/v1. Ctrl-C drains and ends; twice ends at once.
    """
    if output not in ("text", "json"):
        _refuse([f"--output {output!r}: use text or json"])
    if pool is not None and (model or min_replicas is not None or max_replicas is not None):
        _refuse(["--pool: it says which models and how many replicas: leave the options out"])
    if api_key_file is not None:
        _check_keys(api_key_file)
    for option, file in (
        ("--queue-url-file", queue_url_file),
        ("--trusted-ca-file", trusted_ca_file),
    ):
        if file is not None and not os.access(file, os.R_OK):
            _refuse([f"{option} {file}: it can't be read: name a file that can"])
    try:
        if demo and pool is None:
            wanted = demo_pool(model or ())
        elif pool is not None:
            wanted = pool_from_file(pool)
        else:
            served = bool(model) and all("=openai:" in one for one in model or ())
            usual = 1 if served or queue is not None else 2
            low, high = _replicas(min_replicas, max_replicas, most=usual)
            wanted = pool_from_options(model or (), low, high)
    except BadPool as error:
        _refuse(error.faults)
    if queue is not None and (most := wanted.spec.scaling.max_replicas) > 1:
        _refuse(
            [
                f"--queue {queue}: one worker owns the file, and the pool may have {most}: use "
                "--max-replicas 1 (spec.scaling.maxReplicas of a pool's file), or leave --queue out"
            ]
        )
    if queue is not None and queue_url_file is not None:
        _refuse([f"--queue {queue}: --queue-url-file says where tasks are, too: leave one out"])
    instead = Instead(
        keys=api_key_file is not None,
        tenants=tenant_keys_dir is not None,
        queue=queue is not None or queue_url_file is not None,
        ca=trusted_ca_file is not None,
    )
    if found := faults(wanted.spec, instead):
        _refuse(found)
    from llmtaskpool_operator.local.pool import LocalOptions  # after the options, which may be bad
    from llmtaskpool_operator.local.run import run

    command: tuple[str, ...] = ()
    if upstream is not None:
        if not any(one.source.startswith("openai:") for one in wanted.spec.models):
            _refuse(
                [
                    "--upstream: no model is asked of it: add --model "
                    "name=openai:http://127.0.0.1:8001/v1"
                ]
            )
        try:
            command = command_of(upstream)
        except BadCommand as error:
            _refuse([str(error)])
    options = LocalOptions(
        host=host,
        port=port if port is not None else 0 if demo else DEFAULT_PORT,
        api_key_file=api_key_file,
        tenant_keys_dir=tenant_keys_dir,
        cache_dir=cache_dir,
        data_dir=data_dir,
        queue=queue,
        queue_url_file=queue_url_file,
        trusted_ca_file=trusted_ca_file,
        cores=machine_cores() if divide_cores else None,
        drain_seconds=drain_seconds,
        record=record,
        upstream=command,
        upstream_hosts=tuple(upstream_host or ()),
    )
    raise typer.Exit(asyncio.run(run(wanted, options, output=output, demo=demo)))


def _replicas(low: int | None, high: int | None, *, most: int) -> tuple[int, int]:
    least = 1 if low is None else low
    most = max(most, least) if high is None else high
    if least > most:
        _refuse([f"--min-replicas {least}: it is over --max-replicas {most}: lower it"])
    return least, most


def _check_keys(path: Path) -> None:
    problem = None
    try:
        keys_in(path.read_text("utf-8-sig"))
    except OSError as error:
        problem = f"{error.strerror}: name a file that can be read"
    except UnicodeDecodeError:
        problem = "it is not UTF-8 text: write one key a line"
    except ValueError as error:
        problem = str(error)
    if problem is not None:
        _refuse([f"--api-key-file {path}: {problem}"])


def _refuse(faults: list[str] | tuple[str, ...]) -> NoReturn:
    for fault in faults:
        sys.stderr.write(f"llmtaskpool local: {fault}\n")
    raise typer.Exit(BAD_INPUT)
