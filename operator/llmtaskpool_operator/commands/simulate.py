"""``llmtaskpool simulate``: the law over a trace of requests, on a virtual clock."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from llmtaskpool_worker.scheduling import profile as profiles
from rich.console import Console
from rich.progress import Progress, TaskID

from llmtaskpool_operator.api.manifest_file import BadPool, pool_from_file
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.simulation.comparison import LAWS, run
from llmtaskpool_operator.simulation.report import as_json, table, terminal_plot, write_plot
from llmtaskpool_operator.simulation.service import LLAMA2_70B, PodModel, of_profile
from llmtaskpool_operator.simulation.simulator import Outcome, Setting
from llmtaskpool_operator.simulation.trace import Trace, TraceError, read

BAD_INPUT = 2
MOST_REPLICAS = 64
LONGEST_WARM_UP = 600.0


def simulate(
    trace: Annotated[
        Path,
        typer.Argument(
            help="CSV (or .gz) with a header: arrival seconds, prompt tokens, output tokens, "
            "and optionally uncached prompt tokens."
        ),
    ],
    pool: Annotated[
        Path | None, typer.Option(help="A file with an LLMTaskPool: objectives, bounds, law.")
    ] = None,
    law: Annotated[
        str,
        typer.Option(
            help="ours, literal, hpa-gpu, hpa-sm, keda-queue, keda-concurrency, kpa, ray-serve."
        ),
    ] = "ours",
    compare: Annotated[bool, typer.Option("--compare", help="Run every law.")] = False,
    target: Annotated[
        float | None, typer.Option(help="The law's target. Default: the pool's, or the peer's own.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Profile that `llmtaskpool calibrate` wrote. Default: llama2-70b on 4 x A100."
        ),
    ] = None,
    start_up: Annotated[
        float | None, typer.Option(min=0, max=3600, help="Seconds until a new pod is ready.")
    ] = None,
    warm_up: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds at the beginning that are not scored. [default: 1/6, at most 600]"
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Where to write a plot as PNG.")] = None,
    output: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Run a trace through simulated pods that the product's own law sizes."""
    if output not in ("text", "json"):
        _refuse(f"--output {output!r}: use text or json")
    if law not in LAWS:
        _refuse(f"--law {law!r}: use one of {', '.join(LAWS)}")
    if compare and target is not None:
        _refuse("--target: laws have targets of different units: leave --compare or it out")
    if target is not None and not 0 < target < 1e6:
        _refuse(f"--target {target}: use a number above 0")
    if plot is not None and (plot.suffix.lower() != ".png" or not plot.parent.is_dir()):
        _refuse(f"--plot {plot}: name a .png file in a folder that exists")
    spec, model = _spec(pool), _model(profile)
    if start_up is not None:
        model = model.with_start_up(start_up)
    try:
        requests = read(trace)
    except TraceError as error:
        _refuse(str(error))
    left_out = min(LONGEST_WARM_UP, requests.seconds / 6) if warm_up is None else warm_up
    if left_out > requests.seconds:
        _refuse(
            f"--warm-up {left_out:g}: the last request arrives at {requests.seconds:g} s: "
            "nothing would be scored: use less"
        )
    setting = Setting(spec, model, warm_up=left_out, initial_replicas=spec.replicas)
    outcomes = _run(LAWS if compare else (law,), requests, setting, target)
    if plot is not None:
        _plot(outcomes, plot)
    _show(outcomes, requests, setting, output)


def _spec(pool: Path | None) -> LLMTaskPoolSpec:
    if pool is None:
        # Without a pool file nothing says where to stop, and a trace may need many pods.
        return LLMTaskPoolSpec.model_validate({"scaling": {"maxReplicas": MOST_REPLICAS}})
    try:
        return pool_from_file(pool).spec
    except BadPool as error:
        _refuse("; ".join(error.faults))


def _model(profile: Path | None) -> PodModel:
    if profile is None:
        return LLAMA2_70B
    try:
        return of_profile(profiles.read(profile))
    except ValueError as error:
        _refuse(f"--profile: {error}")


def _run(
    names: Sequence[str], requests: Trace, setting: Setting, target: float | None
) -> list[Outcome]:
    shown = Console(stderr=True)
    if not shown.is_terminal:
        return [run(name, requests, setting, target) for name in names]
    outcomes = []
    with Progress(console=shown, transient=True) as bar:
        for name in names:
            task = bar.add_task(name, total=1.0)
            told = partial(_told, bar, task)
            outcomes.append(run(name, requests, setting, target, told))
    return outcomes


def _told(bar: Progress, task: TaskID, share: float) -> None:
    bar.update(task, completed=share)


def _plot(outcomes: Sequence[Outcome], path: Path) -> None:
    try:
        write_plot(outcomes, path)
    except OSError as error:
        _refuse(f"--plot {path}: {error.strerror}: name a file that can be written")


def _show(outcomes: Sequence[Outcome], requests: Trace, setting: Setting, output: str) -> None:
    if output == "json":
        sys.stdout.write(json.dumps(as_json(outcomes)) + "\n")
        return
    console = Console()
    slo = setting.spec.slo
    console.print(
        f"{len(requests)} requests in {requests.seconds / 60:.1f} min, {setting.model.name}, "
        f"start-up {setting.model.start_up_seconds:g} s; first {setting.warm_up:.0f} s not scored; "
        f"SLO: first token within {slo.ttft_seconds:g} s, then {slo.tpot_seconds:g} s per token",
        highlight=False,
    )
    console.print(table(outcomes))
    console.print(terminal_plot(outcomes[0], console.width), markup=False, highlight=False)


def _refuse(fault: str) -> NoReturn:
    sys.stderr.write(f"llmtaskpool simulate: {fault}\n")
    raise typer.Exit(BAD_INPUT)
