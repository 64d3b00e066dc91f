"""What the demo found, in numbers per priority class and as people read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil, inf
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmtaskpool_operator.local.demo import SENTENCES, WEIGHTS, Results


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One priority class in numbers; waits in seconds."""

    name: str
    weight: float
    done: int
    failed: int
    wait_p50: float
    wait_p95: float


@dataclass(frozen=True, slots=True)
class DemoReport:
    """All that the demo found."""

    classes: tuple[ClassReport, ...]
    errors: tuple[str, ...]
    seconds: float
    answer: tuple[str, str] | None
    similarities: tuple[float, float] | None
    found: tuple[str, str] | None
    seen: str | None
    decisions: tuple[str, ...]
    most_replicas: int
    most_threads: int

    @property
    def faults(self) -> list[str]:
        """What did not go as it must, in words; empty when all is well."""
        faults = list(self.errors)
        waits = {one.name: one.wait_p95 for one in self.classes}
        if waits.get("chat", 0.0) >= waits.get("batch", inf):
            faults.append(
                f"chats waited as long as batch work: p95 {waits['chat']:.1f} s "
                f"against {waits['batch']:.1f} s"
            )
        return faults

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"event": "summary", **asdict(self), "faults": self.faults}


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values don't exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else 0.0


def report(
    results: Results,
    *,
    seconds: float,
    decisions: Sequence[str],
    most_replicas: int,
    most_threads: int,
) -> DemoReport:
    """The results in numbers, per class."""
    classes = []
    for name, weight in WEIGHTS.items():
        mine = [one for one in results.outcomes if one.kind == name]
        if not mine:
            continue
        waits = [one.wait_seconds for one in mine if one.error is None]
        classes.append(
            ClassReport(
                name=name,
                weight=weight,
                done=len(waits),
                failed=len(mine) - len(waits),
                wait_p50=round(quantile(waits, 0.5), 3),
                wait_p95=round(quantile(waits, 0.95), 3),
            )
        )
    return DemoReport(
        classes=tuple(classes),
        errors=tuple(one.error for one in results.outcomes if one.error is not None),
        seconds=round(seconds, 1),
        answer=results.answer,
        similarities=results.similarities,
        found=results.found,
        seen=results.seen,
        decisions=tuple(decisions),
        most_replicas=most_replicas,
        most_threads=most_threads,
    )


def summary(found: DemoReport) -> RenderableType:
    """The report as people read it."""
    table = Table(title="What was done", title_justify="left")
    for name in ("class", "weight W", "done", "failed", "wait p50", "wait p95"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for one in found.classes:
        failed = Text(str(one.failed), style="bold red" if one.failed else "")
        waits = (f"{one.wait_p50:.2f} s", f"{one.wait_p95:.2f} s")
        table.add_row(one.name, f"{one.weight:g}", str(one.done), failed, *waits)
    parts: list[RenderableType] = [table]
    parts.append(
        Text("wait: from submitting to the start; chat: to the first token; rerank, embed "
             "and image: to the answer", style="dim")
    )  # fmt: skip
    if found.answer is not None:
        parts.append(Text(f"asked: {found.answer[0]}\nanswer: {found.answer[1]}"))
    if found.similarities is not None:
        near, far = found.similarities
        parts.append(
            Text(f"similarity: {near:.2f} of {SENTENCES[0]!r} with {SENTENCES[1]!r}, "
                 f"{far:.2f} with {SENTENCES[2]!r}")
        )  # fmt: skip
    if found.found is not None:
        parts.append(Text(f"searched: {found.found[0]}\nfound: {found.found[1]}"))
    if found.seen is not None:
        parts.append(Text(f"digits read in pictures: {found.seen}"))
    parts.append(Text(f"decisions ({len(found.decisions)}):"))
    parts += [Text(f"  {line}") for line in found.decisions]
    total = sum(one.done for one in found.classes)
    parts.append(
        Text(
            f"{total} tasks in {found.seconds:.0f} s, at most {found.most_replicas} workers and "
            f"{found.most_threads} threads, {len(found.errors)} failures.",
            style="bold",
        )
    )
    parts += [Text(f"FAULT: {fault}", style="bold red") for fault in found.faults]
    return Group(*parts)
