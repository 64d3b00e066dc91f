"""``llmtaskpool decide``: the equation and the priorities on numbers from the command line."""

from __future__ import annotations

import json
import math
import sys
from typing import Annotated, NoReturn

import typer
from llmtaskpool_worker.scheduling.priority import order, priority

BAD_INPUT = 2


def decide(
    threads: Annotated[int, typer.Option(help="N: threads (or replicas) now.")],
    loads: Annotated[str, typer.Option(help="T of each task, separated by commas.")],
    weights: Annotated[
        str | None, typer.Option(help="W of each task; without it all weigh 1.")
    ] = None,
    t_max: Annotated[
        str, typer.Option(help="T_max: a number, or 'max' for the largest load.")
    ] = "max",
    target: Annotated[float, typer.Option(help="U_target.")] = 0.8,
    alpha: Annotated[str, typer.Option(help="A number, or 'Auto' for N / U_target.")] = "Auto",
    output: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Utilization, next threads and order of tasks by N + alpha (U - U_target) and W / T."""
    n = _at_least_one(threads)
    load_list = _numbers("--loads", loads, above=0.0)
    weight_list = (
        [1.0] * len(load_list) if weights is None else _numbers("--weights", weights, above=0.0)
    )
    if len(weight_list) != len(load_list):
        _refuse(
            f"--weights has {len(weight_list)} values and --loads {len(load_list)}: "
            "give one weight per load"
        )
    largest = max(load_list) if t_max == "max" else _number("--t-max", t_max, above=0.0)
    if not (math.isfinite(target) and target > 0):
        _refuse(f"--target {target} is not above 0: use a utilization such as 0.8")
    if output not in ("text", "json"):
        _refuse(f"--output {output!r} is unknown: use text or json")
    gain = n / target if alpha.lower() == "auto" else _number("--alpha", alpha, above=0.0)
    utilization = sum(load / largest for load in load_list) / n
    exact = n + gain * (utilization - target)
    answer = {
        "utilization": round(utilization, 4),
        "target": target,
        "alpha": round(gain, 4),
        "next_threads_exact": round(exact, 4),
        "next_threads": max(0, math.ceil(exact - 1e-9)),
        "priorities": [
            round(priority(w, t), 4) for w, t in zip(weight_list, load_list, strict=True)
        ],
        "order": [place + 1 for place in order(weight_list, load_list)],
    }
    if output == "json":
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        _show(n, load_list, weight_list, answer)


def _show(n: int, loads: list[float], weights: list[float], answer: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("task", "weight W", "load T", "priority W / T", "runs as", box=None)
    priorities, places = answer["priorities"], answer["order"]
    assert isinstance(priorities, list)  # noqa: S101 - made above
    assert isinstance(places, list)  # noqa: S101 - made above
    for task, (weight, load) in enumerate(zip(weights, loads, strict=True), 1):
        table.add_row(
            *(str(task), f"{weight:g}", f"{load:g}"),
            *(f"{priorities[task - 1]:g}", f"{places.index(task) + 1}."),
        )
    console.print(table)
    side = "over" if float(str(answer["utilization"])) > float(str(answer["target"])) else "under"
    console.print(
        f"\n{n} -> {answer['next_threads']} threads: utilization {answer['utilization']:.4g} "
        f"{side} target {answer['target']}; "
        f"{n} + {answer['alpha']} x ({answer['utilization']} - {answer['target']}) "
        f"= {answer['next_threads_exact']}, rounded up"
    )


def _at_least_one(threads: int) -> int:
    if threads < 1:
        _refuse(f"--threads {threads} is below 1: U = sum / N needs at least one thread")
    return threads


def _numbers(option: str, text: str, *, above: float) -> list[float]:
    parts = [part.strip() for part in text.split(",")]
    if parts == [""]:
        _refuse(f"{option} is empty: give at least one number, such as {option} 0.2,0.3")
    return [_number(option, part, above=above) for part in parts]


def _number(option: str, text: str, *, above: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= above:
        _refuse(f"{option}: {text!r} is not a number above {above:g}")
    return value


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(f"llmtaskpool decide: {message}\n")
    raise typer.Exit(BAD_INPUT)
