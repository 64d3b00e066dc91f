"""Decisions in words: one line that says what was decided, from what, and what held it back.

Pure.
"""

from __future__ import annotations

from llmtaskpool_operator.autoscaler.law import Bound, Decision, bounds


def reason_of(decision: Decision) -> str:
    """The line, such as ``3 -> 5 replicas: utilization 1.34 over target 0.90 (...)``."""
    n, desired, unit = decision.current, decision.desired, decision.policy.unit
    step = f"{n} -> {desired} {unit}" if desired != n else f"{n} {unit}"
    parts = [f"{step}: {_measured(decision)}", _held(decision)]
    if decision.ignored:
        parts.append(f"ignored: {', '.join(decision.ignored)}")
    return "; ".join(part for part in parts if part)


def _measured(decision: Decision) -> str:
    seen, policy = decision.observed, decision.policy
    if decision.exact is None:
        if seen.age_seconds > policy.stale_seconds:
            return f"hold, the newest sample is {seen.age_seconds:.0f} s old"
        return "hold, no believable sample"
    if decision.utilization is None:
        return "no work has arrived" if decision.exact == 0 else "work has arrived"
    u, target = f"{decision.utilization:.2f}", f"{policy.target:.2f}"
    side = "at" if u == target else "over" if decision.utilization > policy.target else "under"
    return f"utilization {u} {side} target {target} ({_demand(decision)} over {decision.current})"


def _demand(decision: Decision) -> str:
    seen = decision.observed
    running = "?" if seen.running is None else f"{seen.running:.1f}"
    if decision.policy.unit == "threads":
        return f"active {running} + queued {seen.waiting:.1f}"
    trimmed = f", kappa {decision.kappa:.2f}" if abs(decision.kappa - 1) >= 0.005 else ""
    return f"offered {running} + backlog {seen.waiting:.1f} pod-s/s{trimmed}"


def _held(decision: Decision) -> str:
    low, high = bounds(decision.policy, decision.observed)
    wanted = decision.wanted
    match decision.bound:
        case Bound.STABILIZED:
            return f"{wanted} wanted, waits {decision.wait_seconds:.0f} s more"
        case Bound.STEP:
            return f"{wanted} wanted, the step limit allows {decision.desired} now"
        case Bound.DISABLED:
            return f"{wanted} wanted, changes in this direction are disabled"
        case Bound.INCOMPLETE:
            return f"{wanted} wanted, but the data are incomplete: no fall"
        case Bound.MINIMUM:
            return f"the minimum is {low}"
        case Bound.MAXIMUM:
            capped = high < decision.policy.maximum
            return f"the cap is {high}" if capped else f"the maximum is {high}"
        case _:
            wanted_none = decision.exact is not None and decision.exact <= decision.policy.tolerance
            kept = decision.observed.busy and decision.desired == 1 and wanted_none
            return "work is held or under way: not 0" if kept else ""
