"""The peers' laws on the worked examples of their own documentation, and what none of them does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_operator.simulation.hpa import HpaBehavior, hpa_from_pods, hpa_from_total
from llmtaskpool_operator.simulation.laws import PodSample, PoolSample, ReplicaLaw
from llmtaskpool_operator.simulation.peer_laws import (
    PEERS,
    HpaOnGpuBusy,
    HpaOnSmActivity,
    KedaOnConcurrency,
    KedaOnQueue,
    Kpa,
    Literal,
    RayServe,
)


def pod(
    *,
    ready: bool = True,
    draining: bool = False,
    running: int = 0,
    queued: int = 0,
    threads: int = 48,
    sm: float | None = 0.5,
    busy: float | None = 0.5,
) -> PodSample:
    return PodSample(
        "p", ready, draining, running, queued, threads, threads, 0.0, 0.0, 0.0, sm, busy
    )


def sample(
    *pods: PodSample, now: float = 0.0, replicas: int | None = None, age: float = 0.0, low: int = 1
) -> PoolSample:
    return PoolSample(now, len(pods) if replicas is None else replicas, low, 1000, age, pods)


def run(
    law: ReplicaLaw, seconds: float, pool: Callable[[float, int], PoolSample], n: int
) -> list[int]:
    """The decision of every period, each applied (and its pods ready) before the next."""
    sizes = []
    for tick in range(int(seconds / law.period_seconds)):
        n = law.decide(pool(tick * law.period_seconds, n))
        sizes.append(n)
    return sizes


def spread(concurrency: int) -> Callable[[float, int], PoolSample]:
    """Always as many tasks in the pool, however many pods it has."""

    def pool(now: float, n: int) -> PoolSample:
        first = pod(running=concurrency)
        return sample(first, *[pod() for _ in range(n - 1)], now=now)

    return pool


def test_the_article_s_example_stays_at_three() -> None:
    """Source: the article, section 5 (docs/law.md): loads .2 .3 .4 .3 .2 on N = 3, T_max = 1,
    U_target .5, alpha .1 give U = 1.4 / 3 and N_new = 2.9967, rounded up 3."""
    pods = [pod(running=4, threads=10), pod(running=5, threads=10), pod(running=5, threads=10)]
    assert Literal(0.5).decide(sample(*pods)) == 3


def test_the_article_s_example_with_its_own_t_max_grows_to_four() -> None:
    """Source: the same with T_max = .4, "the largest task load": U = 1.1667, N_new = 3.0667."""
    pods = [pod(running=4, threads=4), pod(running=5, threads=4), pod(running=5, threads=4)]
    assert Literal(0.5).decide(sample(*pods)) == 4


def test_the_literal_equation_gives_nothing_back() -> None:
    """Source: control.md, "Why the literal law stalls": from N = 10 with the load of one pod it
    stays at 10 for ever."""
    assert set(run(Literal(), 3600, spread(48), 10)) == {10}


def test_hpa_doubles_at_twice_the_target_and_halves_at_half_of_it() -> None:
    """Source: kubernetes.io, Horizontal Pod Autoscaling, "Algorithm details": 200m against 100m
    doubles the replicas, 50m against 100m halves them."""
    assert hpa_from_pods(4, [0.2] * 4, 0.1) == 8
    assert hpa_from_pods(4, [0.05] * 4, 0.1) == 2


def test_hpa_on_gpu_busy_time_goes_from_50_to_60_pods() -> None:
    """Source: kubernetes.io, blog "HorizontalPodAutoscaler Configurable Tolerance" (v1.33): 50
    replicas at 90 % with a target of 75 % become 50 x 90/75 = 60."""
    pods = [pod(busy=0.9, sm=0.1) for _ in range(50)]
    assert HpaOnGpuBusy(0.75).decide(sample(*pods)) == 60


def test_hpa_on_sm_activity_reads_that_metric_and_ignores_ten_per_cent() -> None:
    """Source: the same blog: no change while the metric is within 10 % of its target."""
    within = [pod(sm=0.82, busy=1.0) for _ in range(50)]
    over = [pod(sm=0.9, busy=1.0) for _ in range(50)]
    assert HpaOnSmActivity(0.75).decide(sample(*within)) == 50
    assert HpaOnSmActivity(0.75).decide(sample(*over)) == 60


def test_hpa_takes_pods_without_a_metric_for_idle_when_it_grows_and_on_target_when_it_shrinks() -> (
    None
):
    """Source: kubernetes.io, "Algorithm details": missing metrics count as 0 % in a scale up and
    100 % of the target in a scale down; an action that this turns round is not taken."""
    # 4 x 1.5 over 6 pods is 1.0: no growth. Over 5 pods it is 1.2: 6 of them.
    assert hpa_from_pods(6, [1.5] * 4, 1.0, missing=2) == 6
    assert hpa_from_pods(5, [1.5] * 4, 1.0, missing=1) == 6
    # 4 x 0.25 + 2 x 1.0 over 6 pods is 0.5: half of them, not a quarter.
    assert hpa_from_pods(6, [0.25] * 4, 1.0, missing=2) == 3


def test_hpa_counts_starting_pods_as_idle_only_when_it_grows() -> None:
    """Source: kubernetes.io, "Algorithm details": not-yet-ready pods count as 0 % in a scale up."""
    full, starting = [pod(sm=1.0) for _ in range(4)], [pod(ready=False, sm=None)] * 4
    assert HpaOnSmActivity(0.5).decide(sample(*full)) == 8
    assert HpaOnSmActivity(0.5).decide(sample(*full, *starting)) == 8
    assert hpa_from_pods(8, [0.1] * 4, 0.5, unready=4) == 1


def test_hpa_ignores_pods_that_are_being_removed() -> None:
    """Source: kubernetes.io, "Algorithm details": pods with a deletion timestamp are ignored."""
    pods = [pod(sm=0.5), pod(sm=0.5), pod(sm=1.0, draining=True)]
    assert HpaOnSmActivity(0.5).decide(sample(*pods, replicas=2)) == 2


def test_hpa_adds_four_pods_or_doubles_every_15_s() -> None:
    """Source: kubernetes.io, "Default Behavior": 4 pods or 100 % of the replicas, whichever is
    more, every 15 s until the steady state."""
    assert run(KedaOnQueue(1), 75, lambda now, n: _queue(now, n, 100), 1) == [5, 10, 20, 40, 80]


def test_hpa_shrinks_to_the_highest_recommendation_of_five_minutes() -> None:
    """Source: kubernetes.io, "Stabilization window": all desired states of the past 5 minutes are
    considered and the highest is used."""
    behavior = HpaBehavior()
    wanted = {0: 10, 15: 4, 30: 7}
    sizes = {now: behavior.applied(now, 10, wanted.get(now, 2)) for now in range(0, 346, 15)}
    assert sizes[285] == 10
    assert sizes[300] == sizes[315] == 7
    assert sizes[330] == 2


def test_keda_on_queue_wants_three_pods_for_thirty_messages_of_ten() -> None:
    """Source: keda.sh, Azure Storage Queue: queueLength 10 and 30 messages in the queue scale to
    3 pods; at the default of 5, 20 messages scale to 4."""
    assert hpa_from_total(1, 30, 10) == 3
    assert KedaOnQueue(10).decide(_queue(0, 1, 30)) == 3
    assert KedaOnQueue(5).decide(_queue(0, 1, 20)) == 4


def test_keda_on_concurrency_counts_what_runs_and_what_waits() -> None:
    """Source: keda.sh, Prometheus: its example has a threshold of 100 on a sum over the deployment,
    which HPA divides by the pods. Our number: 350 in flight then want 4."""
    pods = [pod(running=150, queued=50), pod(running=150, queued=0)]
    assert KedaOnConcurrency(100).decide(sample(*pods)) == 4


def _queue(now: float, n: int, queued: int) -> PoolSample:
    return sample(pod(queued=queued), *[pod() for _ in range(n - 1)], now=now)


def test_kpa_makes_five_pods_of_fifty_requests_at_ten() -> None:
    """Source: knative.dev, "Autoscale Sample App - Go": 50 concurrent requests at a target of 10
    make 5 pods; the panic window of 6 s has them there at once."""
    assert run(Kpa(10), 120, spread(50), 1)[0] == 5
    assert run(Kpa(10), 120, spread(50), 1)[-1] == 5


def test_kpa_panics_at_twice_the_target_and_shrinks_again_after_a_quiet_minute() -> None:
    """Source: knative.dev, the same page, and "Additional autoscaling configuration for KPA":
    panic at 200 % over 6 s, no shrinking in it, and back once not met for 60 s."""

    def pool(now: float, n: int) -> PoolSample:
        return spread(10 if now < 60 or now >= 66 else 60)(now, n)

    sizes = run(Kpa(10), 240, pool, 1)
    assert set(sizes[:30]) == {1}
    burst = sizes[32]
    assert burst == 6  # 6 s of 60 in flight, where the mean of the minute asks for 2
    assert set(sizes[33:61]) == {6}  # the last panic was at 60 s
    assert sizes[61] == 3
    assert sizes[-1] == 1


def test_kpa_shrinks_by_no_more_than_half_in_one_decision() -> None:
    """Source: knative.dev, "Scale down rate": at 2.0 from N to N/2 in one evaluation cycle."""
    law = Kpa(10)
    assert law.decide(sample(*[pod()] * 8, now=0)) == 8  # it starts in panic: no history yet
    assert law.decide(sample(*[pod()] * 8, now=62)) == 4
    assert law.decide(sample(*[pod()] * 4, now=64)) == 2


def test_ray_serve_has_a_replica_for_every_user_with_a_target_of_one() -> None:
    """Source: docs.ray.io, "Ray Serve Autoscaling", ResNet50: users who send one request at a
    time, target_ongoing_requests 1: the replicas match the number of users. And "Advanced Ray
    Serve Autoscaling": only when wanted for upscale_delay_s, 30 s, without a break."""
    sizes = run(RayServe(1), 120, spread(100), 1)
    assert sizes[:3] == [1, 1, 1]
    assert set(sizes[3:]) == {100}


def test_ray_serve_waits_ten_minutes_before_it_shrinks() -> None:
    """Source: docs.ray.io, "Advanced Ray Serve Autoscaling": downscale_delay_s is 600 s."""
    sizes = run(RayServe(10), 700, spread(20), 8)
    assert set(sizes[:60]) == {8}
    assert set(sizes[60:]) == {2}


def test_ray_serve_s_factors_moderate_each_step() -> None:
    """Source: docs.ray.io, the same page: upscaling_factor is a gain on each decision; 0.3 as in
    its model composition example. From 1 towards 100: 1 + 0.3 x 99 = 30.7, rounded up."""
    sizes = run(RayServe(1, upscaling_factor=0.3), 60, spread(100), 1)
    assert sizes[3] == 31


def test_a_break_starts_ray_serve_s_delay_anew() -> None:
    """Source: docs.ray.io, the same page: "consistently" for upscale_delay_s."""
    law = RayServe(10)
    quiet_at = {20.0}
    sizes = [
        law.decide(spread(0 if now in quiet_at else 30)(now, 2)) for now in (0.0, 10.0, 20.0, 30.0)
    ]
    assert sizes == [2, 2, 2, 2]


def test_a_law_refuses_a_target_that_cannot_be_one() -> None:
    for target in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"target of kpa is .*: give a number above 0"):
            PEERS["kpa"](target)


def test_the_peers_are_those_of_the_command_line() -> None:
    assert list(PEERS) == [
        "literal", "hpa-gpu", "hpa-sm", "keda-queue", "keda-concurrency", "kpa", "ray-serve",
    ]  # fmt: skip
    assert all(PEERS[name](None).name == name for name in PEERS)


shares = st.one_of(st.none(), st.floats(0, 1))
pods_seen = st.builds(
    pod,
    ready=st.booleans(),
    draining=st.booleans(),
    running=st.integers(0, 200),
    queued=st.integers(0, 5000),
    threads=st.integers(0, 200),
    sm=shares,
    busy=shares,
)


@pytest.mark.parametrize("name", PEERS)
@given(
    scrapes=st.lists(st.tuples(st.lists(pods_seen, max_size=4), st.floats(0, 600)), max_size=8),
    low=st.integers(0, 4),
    start=st.integers(0, 12),
)
def test_no_law_goes_below_one_or_outside_the_pool_s_bounds(
    name: str, scrapes: list[tuple[list[PodSample], float]], low: int, start: int
) -> None:
    law, n = PEERS[name](None), start
    for tick, (pods, age) in enumerate(scrapes):
        n = law.decide(PoolSample(tick * law.period_seconds, n, low, 40, age, tuple(pods)))
        assert max(1, low) <= n <= 40


@pytest.mark.parametrize("name", PEERS)
@given(
    before=st.integers(0, 500), n=st.integers(2, 9), ticks=st.integers(1, 30), gone=st.booleans()
)
def test_a_law_holds_while_it_has_no_data(
    name: str, before: int, n: int, ticks: int, gone: bool
) -> None:
    """Pods that no scrape shows, or a scrape of before the loss that is far too old."""
    law = PEERS[name](None)
    now = 0.0
    for _ in range(3):
        law.decide(spread(before)(now, n))
        now += law.period_seconds
    for _ in range(ticks):
        pods = () if gone else (pod(running=before), *[pod()] * (n - 1))
        assert law.decide(PoolSample(now, n, 1, 1000, 3600.0, pods)) == n
        now += law.period_seconds


@pytest.mark.parametrize("name", ["hpa-gpu", "hpa-sm"])
@given(running=st.integers(0, 500), n=st.integers(1, 40))
def test_hpa_holds_when_every_pod_has_lost_its_gpu_metric(name: str, running: int, n: int) -> None:
    pods = [pod(running=running, sm=None, busy=None) for _ in range(n)]
    assert PEERS[name](None).decide(sample(*pods)) == n
