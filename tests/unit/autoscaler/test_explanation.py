"""`llmtaskpool explain` and `top` as people read them, 120 columns wide."""

from __future__ import annotations

import io
import subprocess
from typing import Any

import pytest
import typer
from fakes import preloaded
from fakes.cluster_objects import pool
from kubernetes.aio.config import kube_config
from llmtaskpool_operator.api.status import LLMTaskPoolStatus
from llmtaskpool_operator.autoscaler.explanation import explanation, overview
from llmtaskpool_operator.commands.explain import explain
from rich.console import Console

AT = "2026-01-01T08:00:00Z"
WHY = "3 -> 5 replicas: utilization 1.34 over target 0.90 (offered 4.0 + backlog 0.0 over 3)"


def shown(what: Any, width: int = 120) -> str:
    file = io.StringIO()
    Console(file=file, width=width, no_color=True).print(what)
    return file.getvalue()


def lines(what: Any, width: int = 120) -> list[str]:
    return [" ".join(line.split()) for line in shown(what, width).splitlines() if line.strip()]


def condition(kind: str, status: str, reason: str = "Because", message: str = "") -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": AT,
    }


GOOD = [
    condition("Ready", "True", "AllReady", "5 of 5 replicas are ready"),
    condition("MetricsAvailable", "True", "Fresh", "5 pods report"),
    condition("Degraded", "False", "Healthy"),
    condition("ScalingActive", "True", "Auto", "scaling.mode is Auto"),
    condition("ScalingLimited", "False", "None", WHY),
]


def with_status(spec: dict[str, Any] | None = None, generation: int = 1, **status: Any):
    full = {
        "observedGeneration": 1,
        "desiredReplicas": 5,
        "readyReplicas": 5,
        "queued": 7,
        "utilization": 0.876,
        "threads": [
            {"lane": "compute", "desired": 24, "observed": 20, "active": 18, "queued": 7},
            {"lane": "io", "desired": 80, "observed": 80, "active": 1, "queued": 0},
        ],
        "lastDecisions": [
            {"time": AT, "what": "replicas", "before": 3, "after": 5, "reason": WHY},
            {"time": AT, "what": "threads/io", "before": 64, "after": 80, "reason": "queue"},
        ],
        "conditions": GOOD,
    } | status
    found = pool(**(spec or {}))
    metadata = found.metadata.model_copy(update={"generation": generation})
    update = {"metadata": metadata, "status": LLMTaskPoolStatus.model_validate(full)}
    return found.model_copy(update=update)


def test_a_healthy_pool_is_its_size_its_reason_its_threads_and_its_decisions() -> None:
    assert lines(explanation(with_status())) == [
        "team-a/chat: 5 of 5 replicas ready",
        f"Why: {WHY}.",
        "LANE DESIRED OBSERVED ACTIVE QUEUED",
        "compute 24 20 18 7",
        "io 80 80 1 0",
        "WHEN WHAT CHANGE WHY",
        f"{AT} replicas 3 -> 5 {WHY.removesuffix(' 0.0 over 3)')}",
        "0.0 over 3)",
        f"{AT} threads/io 64 -> 80 queue",
    ]


def test_it_has_no_escape_codes_without_colour() -> None:
    assert "\x1b" not in shown(explanation(with_status()))


@pytest.mark.parametrize("status", [None, LLMTaskPoolStatus()])
def test_a_pool_that_nobody_looked_at_says_so(status: LLMTaskPoolStatus | None) -> None:
    new = pool().model_copy(update={"status": status})
    assert lines(explanation(new)) == ["team-a/chat: no operator has looked at it yet"]


def test_pods_that_drain_are_counted_beside_those_that_are_ready() -> None:
    first = lines(explanation(with_status(readyReplicas=3, drainingReplicas=2)))[0]
    assert first == "team-a/chat: 3 of 5 replicas ready, 2 draining"


@pytest.mark.parametrize("mode", ["Fixed", "External"])
def test_a_pool_that_is_not_ours_to_size_says_who_says_it(mode: str) -> None:
    spec = {"replicas": 5, "scaling": {"mode": mode}}
    text = lines(explanation(with_status(spec, conditions=GOOD[:4])))[1]
    assert text == f"Replicas are as spec.replicas says: scaling.mode is {mode}."


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (condition("Ready", "False", "NotAllReady", "2 of 5 replicas are ready"), "2 of 5"),
        (condition("MetricsAvailable", "False", "PodsSilent", "no fresh state from b"), "from b"),
        (condition("MetricsAvailable", "Unknown", "NoPods", "no pod reports yet"), "no pod"),
        (condition("Degraded", "True", "CrashLoopBackOff", "a: kubectl logs"), "kubectl logs"),
        (condition("Stalled", "True", "InvalidSpec", "spec.models: mend it"), "mend it"),
        (condition("Reconciling", "True", "Scaling", "4 of 5 replicas are ready"), "4 of 5"),
        (condition("ScalingActive", "False", "Paused", "scaling.paused is true"), "paused"),
        (condition("ScalingConflict", "True", "OtherWriter", "hpa writes replicas"), "hpa writes"),
    ],
)
def test_what_is_not_as_it_should_be_is_told_with_its_time(bad: dict, said: str) -> None:
    others = [one for one in GOOD if one["type"] != bad["type"]]
    text = lines(explanation(with_status(conditions=[*others, bad])))
    (line,) = [one for one in text if one.startswith(f"{bad['type']} is {bad['status']}")]
    assert f"since {AT}: " in line
    assert said in line


def test_what_is_as_it_should_be_is_not_told() -> None:
    assert not [line for line in lines(explanation(with_status())) if " is True since" in line]


def test_a_condition_without_a_sentence_shows_its_reason() -> None:
    bare = [*GOOD[:2], condition("Degraded", "True", "RolloutStuck")]
    assert f"Degraded is True since {AT}: RolloutStuck" in lines(
        explanation(with_status(conditions=bare))
    )


def test_a_limit_is_told_as_the_reason_and_not_as_a_fault() -> None:
    limited = condition("ScalingLimited", "True", "Maximum", f"{WHY}; the maximum is 5")
    text = lines(explanation(with_status(conditions=[*GOOD[:4], limited])))
    assert text[1] == f"Why: {WHY}; the maximum is 5."
    assert not [line for line in text if line.startswith("ScalingLimited")]


def test_a_spec_that_was_not_seen_yet_is_told() -> None:
    said = "The spec has changed since: the operator has not seen it yet."
    assert said in lines(explanation(with_status(generation=2)))
    assert said not in lines(explanation(with_status(generation=1)))


def test_messages_in_brackets_are_shown_as_they_are() -> None:
    """Rich would take them for markup, and messages come from others."""
    text = "image [bold]x[/bold] [/] not found"
    bad = [*GOOD[:2], condition("Degraded", "True", "ErrImagePull", text)]
    assert text in shown(explanation(with_status(conditions=bad)))


def test_reasons_of_decisions_with_brackets_are_shown_as_they_are() -> None:
    made = {"time": AT, "what": "replicas", "before": 1, "after": 2, "reason": "ignored [/x]"}
    assert "ignored [/x]" in shown(explanation(with_status(lastDecisions=[made])))
    assert "ignored [/x]" in shown(overview([with_status(lastDecisions=[made])]))


def test_the_overview_has_a_line_for_each_pool() -> None:
    other = pool("other")
    head, first, second = lines(overview([with_status(), other]), width=200)
    assert head.startswith("NAMESPACE POOL DESIRED READY THREADS ACTIVE QUEUE UTILIZATION STATUS")
    assert first == f"team-a chat 5 5 100 19 7 0.88 AllReady replicas 3 -> 5: {WHY}"
    assert second == "team-a other - - - - - - not seen yet"


def test_a_pool_without_a_decision_shows_a_dash_and_no_reason() -> None:
    status = {"utilization": None, "lastDecisions": [], "conditions": []}
    _, line = lines(overview([with_status(**status)]))
    assert line == "team-a chat 5 5 100 19 7 - not seen yet"


def test_on_a_narrow_screen_the_last_decision_is_cut_and_no_line_is_broken() -> None:
    assert len(lines(overview([with_status()] * 3), width=110)) == 4


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_long_reason_takes_no_room_from_the_numbers(width: int) -> None:
    """It did: at 120 columns nothing but the last decision was left."""
    made = {"time": "2026-11-25T08:00:00Z", "what": "threads/compute", "before": 4, "after": 3}
    long = made | {"reason": "utilization 0.00 under target 0.80; " * 5}
    head, line = lines(overview([with_status(lastDecisions=[long])]), width=width)
    for title in ("NAMESPACE", "POOL", "DESIRED", "READY", "QUEUE", "UTILIZATION", "STATUS"):
        assert title in head.split()
    assert len(line) <= width


def llmtaskpool(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": "", "NO_COLOR": "1"}
    return preloaded.llmtaskpool(*arguments, environment=clean | environment)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "chat", "--output", "xml"], "--output 'xml': use text or json"),
        (["top", "--output", "xml"], "--output 'xml': use text or json"),
        (["explain", "chat"], "set KUBECONFIG"),
        (["top", "--once"], "set KUBECONFIG"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_exit_code_2(arguments, said, tmp_path) -> None:
    answer = llmtaskpool(*arguments, KUBECONFIG=str(tmp_path / "none"), HOME=str(tmp_path))
    assert answer.returncode == 2
    (line,) = answer.stderr.strip().splitlines()
    assert line.startswith(f"llmtaskpool {arguments[0]}: ")
    assert said in line
    assert answer.stdout == ""


@pytest.mark.parametrize("content", [b"", b"{{{", b"[1]", b"\xff\xfe", b"current-context: x", None])
def test_an_odd_kubeconfig_is_one_line_with_the_remedy(content, tmp_path, monkeypatch, capsys):
    file = tmp_path / "config"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(typer.Exit) as ended:
        explain("chat")
    assert ended.value.exit_code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("llmtaskpool explain: no cluster: ")
    assert line.endswith(": set KUBECONFIG, or run in a pod")


GPUS = {
    "pods": 2,
    "utilization": 0.45,
    "highestUtilization": 0.8,
    "memory": 0.5,
    "highestMemory": 0.9,
    "busiestPod": "chat-b",
}


def test_gpus_are_shown_with_the_mean_and_the_worst_pod() -> None:
    head, line = lines(overview([with_status(gpu=GPUS)]), width=140)
    assert "UTILIZATION GPU STATUS" in head
    assert "45%..80% mem 90%" in line
    page = " ".join(lines(explanation(with_status(gpu=GPUS)), width=140))
    assert "GPUs of 2 pods: utilization 45% on average, 80% in chat-b" in page
    assert "memory 50% on average, 90% at most" in page


def test_of_pools_with_and_without_gpus_the_latter_have_a_dash() -> None:
    _, first, second = lines(overview([with_status(gpu=GPUS), with_status()]), width=140)
    assert "mem 90%" in first
    assert "mem" not in second


def test_sm_activity_is_shown_where_workers_tell_it() -> None:
    gpus = GPUS | {"smActivity": 0.3, "highestSmActivity": 0.7}
    assert "45%..80% SM 30% mem 90%" in lines(overview([with_status(gpu=gpus)]), width=140)[1]
    page = " ".join(lines(explanation(with_status(gpu=gpus)), width=140))
    assert "SM activity 30% on average, 70% at most" in page
