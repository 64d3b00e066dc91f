"""Events of pods that start in silence: asked for seldom, and told with the remedy."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fakes.cluster_objects import NAMESPACE, pod_body
from fakes.memory_api import MemoryApi
from llmtaskpool_operator.autoscaler.observation import Problem
from llmtaskpool_operator.cluster.api_client import ApiFailure
from llmtaskpool_operator.cluster.start_warnings import StartWarnings

KEYS = 'MountVolume.SetUp failed for volume "keys" : secret "nokeys" not found'


def event(note: str, reason: str = "FailedMount", at: str = "2026-01-01T00:00:00Z") -> Any:
    meta = {"name": f"e{abs(hash((note, at)))}", "namespace": NAMESPACE}
    told = {"reason": reason, "note": note, "deprecatedLastTimestamp": at}
    return {"kind": "Event", "metadata": meta} | told


def told(*events: Any) -> dict[str, Problem]:
    api = MemoryApi()
    for one in events:
        api.put(one)
    return asyncio.run(StartWarnings(api).of((pod_body("a"),), 100.0))


def test_a_secret_of_keys_that_is_missing_stalls_the_pool_and_names_its_field() -> None:
    problem = told(event(KEYS))["a"]
    assert (problem.reason, problem.stalled) == ("FailedMount", True)
    assert 'secret "nokeys" not found' in problem.message
    assert "spec.auth.apiKeySecretRef" in problem.message


@pytest.mark.parametrize(
    ("volume", "field"),
    [("tenants", "spec.tenants.named[].apiKeySecretRef"), ("queue", "spec.queue.redis.secretRef")],
)
def test_other_secrets_that_are_missing_name_their_fields(volume: str, field: str) -> None:
    words = f'MountVolume.SetUp failed for volume "{volume}" : secret "none" not found'
    assert field in told(event(words))["a"].message


def test_a_key_that_is_missing_in_it_does_too() -> None:
    words = 'MountVolume.SetUp failed for volume "keys" : references non-existent secret key: key'
    assert told(event(words))["a"].stalled


def test_a_volume_that_only_takes_its_time_does_not_stall() -> None:
    problem = told(event('MountVolume.SetUp failed for volume "cache" : timed out'))["a"]
    assert (problem.reason, problem.stalled) == ("FailedMount", False)
    assert told(event("no free addresses", "FailedCreatePodSandBox"))["a"].reason == "PodWaits"


def test_the_newest_warning_counts_and_what_a_status_tells_better_does_not() -> None:
    old, new = event("old words", at="2026-01-01T00:00:00Z"), event(KEYS, at="2026-01-01T00:00:09Z")
    noise = event("probe failed", "Unhealthy", at="2026-01-01T00:01:00Z")
    assert "nokeys" in told(new, old, noise)["a"].message
    assert told(noise) == {}


def test_who_pulls_an_image_for_minutes_is_asked_about_ever_more_seldom() -> None:
    api = MemoryApi()
    warnings = StartWarnings(api)
    for second in range(600):
        asyncio.run(warnings.of((pod_body("a"), pod_body("b")), float(second)))
    assert 8 <= len(api.calls) <= 16
    assert warnings.missed == 1


def test_what_may_be_missing_is_looked_for_as_long_as_an_event_says_so() -> None:
    api = MemoryApi()
    api.put(event(KEYS))
    warnings = StartWarnings(api)
    for second in range(21):
        asyncio.run(warnings.of((pod_body("a"),), float(second)))
    assert warnings.missed == 6


def test_what_was_told_ends_with_the_pods_silence_and_the_next_one_is_asked_about_at_once() -> None:
    api = MemoryApi()
    api.put(event(KEYS))
    warnings = StartWarnings(api)
    assert asyncio.run(warnings.of((pod_body("a"),), 100.0)) != {}
    assert asyncio.run(warnings.of((), 101.0)) == {}
    assert asyncio.run(warnings.of((pod_body("b"),), 102.0)) != {}


@pytest.mark.parametrize("code", [403, 500])
def test_without_an_answer_there_is_one_reason_less(code: int) -> None:
    api = MemoryApi()

    def fail(_call: Any) -> None:
        raise ApiFailure(code, "no")

    api.before = fail
    assert asyncio.run(StartWarnings(api).of((pod_body("a"),), 100.0)) == {}
