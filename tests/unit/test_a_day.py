"""A day of a pool on a cluster in memory: load comes and goes, pods with it."""

from __future__ import annotations

from math import pi, sin
from typing import Any

import pytest
from fakes.cluster_objects import NAME, NAMESPACE, worker_state
from fakes.controller_rig import AT_REST, Rig
from llmtaskpool_operator.api import KIND

DAY, EACH = 86_400, 30
LEAST, MOST = 0.3, 4.0
"""Offered work of the night and of noon, in pods."""


class Day:
    """The rig with a Deployment controller, and with workers that are offered work by the hour."""

    def __init__(self) -> None:
        self.rig = Rig(scaling={"maxReplicas": 8}, **AT_REST)
        self.before = self.pool()
        self.writes: list[tuple[str, str, str]] = []
        self.sizes: list[int] = []
        self._arrived: dict[str, float] = {}
        self._made = 0

    def pool(self) -> Any:
        return self.rig.api.find(KIND, NAMESPACE, NAME)

    def pass_by(self) -> None:
        for second in range(0, DAY, EACH):
            self.rig.now += EACH
            self.rig.turn()
            self.writes += self.rig.writes
            self._deployment_controller()
            self._work(LEAST + (MOST - LEAST) * (1 - sin(2 * pi * second / DAY + pi / 2)) / 2)

    def _deployment_controller(self) -> None:
        """As many pods as the Deployment wants; the cheapest to delete go, as in Kubernetes."""
        cluster, wanted = self.rig.cluster, self.rig.cluster.deployment["spec"]["replicas"]
        while len(self._arrived) < wanted:
            self._made += 1
            self._arrived[f"pod-{self._made}"] = 0.0
            cluster.pods(f"pod-{self._made}")
        for pod in sorted(self._arrived, key=lambda pod: int(cluster.cost(pod) or 0)):
            if len(self._arrived) > wanted:
                del self._arrived[pod], cluster.states[pod]
                cluster.store.gone("Pod", self.rig.api.objects.pop(("Pod", NAMESPACE, pod)))
        self.sizes.append(wanted)

    def _work(self, offered: float) -> None:
        each = offered / len(self._arrived)
        for pod in self._arrived:
            self._arrived[pod] += each * EACH
            busy = round(min(1.0, each) * 4)
            state = worker_state(pod, active=busy, arrived=self._arrived[pod])
            self.rig.cluster.states[pod] = state


@pytest.fixture(scope="module")
def day() -> Day:
    day = Day()
    day.pass_by()
    return day


def test_after_a_day_the_users_object_is_as_they_wrote_it(day: Day) -> None:
    after = day.pool()
    for body in (after, day.before):
        body["metadata"].pop("resourceVersion")  # the server's, which grows with each status
    assert after["metadata"] == day.before["metadata"]
    assert after["spec"] == day.before["spec"]
    assert {verb for verb, kind, _ in day.writes if kind == KIND} == {"apply/status"}


def test_over_a_day_replicas_follow_the_load_once_up_and_once_down(day: Day) -> None:
    noon, steps = DAY // EACH // 2, list(zip(day.sizes, day.sizes[1:], strict=False))
    assert day.sizes[0] == 1
    assert max(day.sizes) >= MOST
    assert day.sizes[-1] == 1
    falls_before_noon = [(a, b) for a, b in steps[: noon - 60] if b < a]
    rises_after_noon = [(a, b) for a, b in steps[noon + 60 :] if b > a]
    assert falls_before_noon == []
    assert rises_after_noon == []


def test_over_a_day_a_status_is_written_less_than_once_in_two_minutes(day: Day) -> None:
    statuses = [call for call in day.writes if call[0] == "apply/status"]
    assert len(day.sizes) == DAY / EACH  # so often could one have been written
    assert len(statuses) < DAY / 120


def test_over_a_day_what_is_written_but_statuses_is_children_and_sizes(day: Day) -> None:
    changes = sum(a != b for a, b in zip(day.sizes, day.sizes[1:], strict=False))
    others = [call for call in day.writes if call[0] != "apply/status"]
    assert 6 <= changes <= len(others) < 10 * changes
