"""The page that benchmarks/control.py writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from control_scenarios import SEED, WARM_UP_SECONDS, Scenario
from llmtaskpool_operator.simulation.simulator import Outcome

Found = Mapping[tuple[str, str, float | None], Outcome]


def markdown(
    about: Mapping[str, tuple[Scenario, float]], grids: Mapping[str, Sequence[float]],
    best: Mapping[str, float], costs: Mapping[str, float], found: Found, short: Sequence[str],
) -> str:  # fmt: skip
    """The whole page."""
    parts = [
        "# The laws over the scenarios",
        f"Written by `python benchmarks/control.py` (seed {SEED}; the same numbers on every run). "
        "docs/simulate.md says what is modelled. Each family has ONE setting for all scenarios, "
        "*ours* its default, every other the one of its grid with the least J over the short ones; "
        "the last column is its best "
        f"setting for that scenario alone. The first {WARM_UP_SECONDS:.0f} s are not scored. "
        "SLO: first token and time per token both within their objectives. flap: a change of "
        "direction within 10 min. J: pod-hours over the clairvoyant's + 10 x what is missing "
        "below 99 %, averaged.",
        "Rows: *ours* is the product as it is by default (queue by priority, threads tuned); "
        "*newest first* with that queue policy; *replicas only* with the peers' pods. Peers: "
        "best fixed threads, first come first served. *clairvoyant*: the cheapest schedule found "
        "that serves 99 %, on our pods; a search, so not the true least.",
        "## All short scenarios, one setting per family",
        _overall(best, costs, found, short),
    ]
    for name, (scenario, pods) in about.items():
        slo = scenario.setting.spec.slo
        parts += [
            f"## {name}",
            f"{scenario.why}. {len(scenario.trace)} requests in "
            f"{scenario.trace.seconds / 3600:.2f} h, {pods:.2f} pods of work on average; first "
            f"token within {slo.ttft_seconds:g} s, {slo.tpot_seconds:g} s per token; start-up "
            f"{scenario.setting.model.start_up_seconds:g} s.",
            _one(name, grids, best, found),
        ]
    return "\n\n".join(parts) + "\n"


def _overall(
    best: Mapping[str, float], costs: Mapping[str, float], found: Found, short: Sequence[str]
) -> str:
    rows = [
        "| law (setting) | mean SLO % | worst SLO % | pod-h / clairvoyant | changes | flaps | J |",
        "|---|---|---|---|---|---|---|",
    ]
    for law, target in best.items():
        runs = {name: found[name, law, target] for name in short}
        worst = min(runs, key=lambda name: runs[name].slo)
        ratio = [runs[n].pod_hours / found[n, "clairvoyant", None].pod_hours for n in short]
        rows.append(
            f"| {law} ({target:g}) | {100 * sum(r.slo for r in runs.values()) / len(runs):.2f} "
            f"| {100 * runs[worst].slo:.2f} ({worst}) | {sum(ratio) / len(ratio):.2f} "
            f"| {sum(r.actions for r in runs.values())} | {sum(r.flaps for r in runs.values())} "
            f"| {costs[law]:.3f} |"
        )
    return "\n".join(rows)


def _one(
    name: str, grids: Mapping[str, Sequence[float]], best: Mapping[str, float], found: Found
) -> str:
    least = found[name, "clairvoyant", None]
    rows = [
        "| law (setting) | SLO % | pod-h | x clairv. | changes | flaps | TTFT p95 / p99 s "
        "| slow % | its best here: setting, SLO %, pod-h |",
        "|---|---|---|---|---|---|---|---|---|",
        _row("clairvoyant", least, least, ""),
    ]
    for law, target in best.items():
        runs = [(t, found[name, law, t]) for t in grids[law] if (name, law, t) in found]
        at, own = min(
            runs,
            key=lambda r: r[1].pod_hours / least.pod_hours + 10 * max(0.0, 0.99 - r[1].slo),
        )
        text = f"{at:g}: {100 * own.slo:.2f}, {own.pod_hours:.2f}" if len(runs) > 1 else ""
        rows.append(_row(f"{law} ({target:g})", found[name, law, target], least, text))
    return "\n".join(rows)


def _row(label: str, run: Outcome, least: Outcome, own: str) -> str:
    return (
        f"| {label} | {100 * run.slo:.2f} | {run.pod_hours:.2f} "
        f"| {run.pod_hours / least.pod_hours:.2f} | {run.actions} | {run.flaps} "
        f"| {run.ttft_p95:.1f} / {run.ttft_p99:.1f} | {100 * run.tpot_missed:.2f} | {own} |"
    )
