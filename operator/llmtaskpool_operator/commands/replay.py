"""``llmtaskpool replay``: what another setting would have done with a recorded pool's demand."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console

from llmtaskpool_operator.api.manifest_file import BadPool, parse_spec, pool_from_file
from llmtaskpool_operator.api.pool import LLMTaskPool, LLMTaskPoolSpec
from llmtaskpool_operator.api.scaling import Metric, ScalingMode
from llmtaskpool_operator.replay.record import BadRecord, Record
from llmtaskpool_operator.replay.replay import Replay
from llmtaskpool_operator.replay.replay import replay as replayed
from llmtaskpool_operator.replay.report import (
    as_json,
    clock,
    differences,
    moments_that_differ,
    span,
    table,
    terminal_plot,
    write_plot,
)

BAD_INPUT = 2
SHOWN = 20
SETTABLE = ("scaling", "slo")


def replay(
    record: Annotated[
        list[Path],
        typer.Argument(
            help="What `llmtaskpool local --record` wrote, or the operator's log (its other lines "
            "are passed over); several are put together, - is standard input."
        ),
    ],
    pool: Annotated[
        Path | None, typer.Option(help="A file with an LLMTaskPool: the setting to replay.")
    ] = None,
    changed: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A field to change, such as scaling.targetUtilization=0.8; several times.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Which pool, as NAMESPACE/NAME, where there are several.")
    ] = None,
    start_up: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=3600,
            help="Seconds until a new pod is ready. [default: as recorded, 60 without a start]",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Where to write a plot as PNG.")] = None,
    output: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Replay a pool's recorded decisions with another setting, or with mode Auto as it is.

    Without --pool and --set: what Auto makes of the recorded demand, which for a pool in mode
    Advise is what it would have done.
    """
    if output not in ("text", "json"):
        _refuse(f"--output {output!r}: use text or json")
    if plot is not None and (plot.suffix.lower() != ".png" or not plot.parent.is_dir()):
        _refuse(f"--plot {plot}: name a .png file in a folder that exists")
    changes = [_change(text) for text in changed or ()]
    try:
        wanted = pool_from_file(pool) if pool is not None else None
        read = _read(record)
        of = _which(read, name, wanted)
        lines = read.of(of)
        made = replayed(
            lines,
            lambda raw: _recorded(raw, of),
            lambda raw: _wanted(raw, wanted, changes, of),
            start_up,
        )
    except BadPool as error:
        _refuse(*error.faults)
    except BadRecord as error:
        _refuse(str(error))
    if plot is not None:
        try:
            write_plot(of, made, plot)
        except OSError as error:
            _refuse(f"--plot {plot}: {error.strerror}: name a file that can be written")
    if output == "json":
        sys.stdout.write(json.dumps(as_json(of, made)) + "\n")
    else:
        _show(of, made, read.other)


def _read(paths: Sequence[Path]) -> Record:
    record = Record()
    for path in paths:
        if str(path) == "-":
            record.add(sys.stdin, "standard input")
            continue
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                record.add(file, str(path))
        except OSError as error:
            raise BadRecord(f"{path}: {error.strerror}: name a file that can be read") from None
    if not record.pools:
        names = ", ".join(map(str, paths))
        raise BadRecord(
            f"{names}: no line of a record in it: write one with `llmtaskpool local --record "
            "FILE`, or run the operator with --record"
        )
    return record


def _which(record: Record, name: str | None, wanted: LLMTaskPool | None) -> str:
    known = sorted(record.pools)
    if name is not None:
        if name in known:
            return name
        raise BadRecord(f"--name {name}: not in the record: use one of {', '.join(known)}")
    if wanted is not None:
        own = f"{wanted.metadata.namespace}/{wanted.metadata.name}"
        if own in known:
            return own
    if len(known) > 1:
        raise BadRecord(f"--name: the record has several pools: use one of {', '.join(known)}")
    return known[0]


def _recorded(raw: dict[str, Any], of: str) -> LLMTaskPoolSpec:
    try:
        return parse_spec(raw)
    except BadPool as error:
        raise BadRecord(
            f"{of}: whole.{error.faults[0]}: use the llmtaskpool that wrote the record"
        ) from None


def _wanted(
    raw: dict[str, Any],
    pool: LLMTaskPool | None,
    changes: Sequence[tuple[list[str], Any]],
    of: str,
) -> LLMTaskPoolSpec:
    settings = deepcopy(raw) if pool is None else pool.spec.wire()
    for path, value in changes:
        _put(settings, path, value)
    spec = parse_spec(settings) if changes or pool is not None else _recorded(settings, of)
    if spec.scaling.metric is not Metric.OFFERED_WORK:
        raise BadPool(
            [
                f"spec.scaling.metric: '{spec.scaling.metric}': a record has the work that was "
                "offered, not what threads and GPUs of other pods would have shown: use --set "
                "scaling.metric=OfferedWork"
            ]
        )
    return spec


def _change(text: str) -> tuple[list[str], Any]:
    field, equals, value = text.partition("=")
    path = field.split(".")
    if not equals or not all(path) or len(path) < 2 or path[0] not in SETTABLE:
        _refuse(
            f"--set {text!r}: write scaling.FIELD=VALUE, or slo.ttftSeconds=VALUE: "
            "nothing else decides about replicas"
        )
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError:
        _refuse(f"--set {text!r}: {value!r} is no YAML: put it in quotes")


def _put(settings: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a field, however deep; what is in the way there is for the spec's checks to name."""
    for part in path[:-1]:
        inner = settings.setdefault(part, {})
        if not isinstance(inner, dict):
            raise BadPool([f"--set {'.'.join(path)}: {part} has no fields: set it as a whole"])
        settings = inner
    settings[path[-1]] = value


def _show(of: str, made: Replay, other: int) -> None:
    console = Console()
    first, last = made.moments[0].at, made.moments[-1].at
    start = f"{span(made.start_up)} ({'measured' if made.start_up_measured else 'not measured'})"
    say = [
        f"{of}: {len(made.moments)} decisions in {span(last - first)} from {clock(first)} UTC; "
        f"start-up {start}"
    ]
    if made.decided:
        same = made.reproduced == made.decided
        say.append(
            f"{made.reproduced} of {made.decided} recorded decisions come out again with the "
            "recorded setting"
            + ("." if same else ": another version of the law made them, so compare with care.")
        )
    if made.gap_seconds:
        say.append(f"Nothing is recorded of {span(made.gap_seconds)} in it, which count for none.")
    if other:
        say.append(f"{other} other lines were passed over.")
    for line in say:
        console.print(line, highlight=False, markup=False)
    decides = made.mode is ScalingMode.AUTO
    console.print(table(made, "recorded" if decides else f"recorded, mode {made.mode.value}"))
    found = differences(made)
    if not found:
        console.print("Both are the same at every moment.", highlight=False)
        return
    console.print(moments_that_differ(made, SHOWN), highlight=False)
    if len(found) > SHOWN:
        console.print(f"and {len(found) - SHOWN} more: --output json has all", highlight=False)
    console.print(terminal_plot(made, console.width), markup=False, highlight=False)


def _refuse(*faults: str) -> NoReturn:
    for fault in faults:
        sys.stderr.write(f"llmtaskpool replay: {fault}\n")
    raise typer.Exit(BAD_INPUT)
