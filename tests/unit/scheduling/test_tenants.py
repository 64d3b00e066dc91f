"""Tenants: their limits as people write them, and their fair shares."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_worker.scheduling.task_queue import TaskQueue, Terms, Waiting
from llmtaskpool_worker.scheduling.tenants import (
    HALF_LIFE_SECONDS,
    FairShares,
    TenantLimits,
    Tenants,
    parse_tenants,
)


def test_limits_are_read_by_name_and_for_each_without_one() -> None:
    read = parse_tenants("team-a,share=2,weight=0.5; bulk,waiting=100,running=8;*,waiting=20")
    assert read.of("team-a") == TenantLimits(share=2.0, weight=0.5)
    assert read.of("bulk") == TenantLimits(waiting=100, running=8)
    assert read.of("key-12345678") == TenantLimits(waiting=20)
    assert read.of("") == TenantLimits(), "who shows no key has no limits"
    assert read.bound_running
    assert parse_tenants("") == Tenants()


@pytest.mark.parametrize(
    ("text", "who", "sight"),
    [
        ("", "key-12345678", None),  # nobody wrote any down
        ("team", "team", "team"),
        ("team", "key-12345678", "key-12345678"),
        ("team", "", None),  # no key is asked for
        ("team;ops,sees=all", "ops", None),
        ("team;ops,sees=all", "team", "team"),
        ("team;*,sees=all", "key-12345678", None),
        ("team;*,sees=all", "team", "team"),
        ("*", "key-12345678", "key-12345678"),
        ("*,waiting=20", "key-12345678", "key-12345678"),
    ],
)
def test_each_tenant_sees_its_own_and_who_runs_the_pool_sees_all(
    text: str, who: str, sight: str | None
) -> None:
    assert parse_tenants(text).sight(who) == sight


def test_the_lines_of_batches_leave_half_of_what_may_wait_to_others() -> None:
    read = parse_tenants("team,waiting=9;one,waiting=1")
    assert [read.may_wait(name) for name in ("team", "one", "other")] == [9, 1, None]
    of_a_batch = [read.may_wait(name, of_a_batch=True) for name in ("team", "one", "other")]
    assert of_a_batch == [4, 1, None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Team", "'Team' is no name of a tenant"),
        ("key-1", "not key- at the beginning"),
        ("a;a", "a is there twice"),
        ("a,many=1", "'many' is none of waiting, running, weight, share"),
        ("a,sees=some", "sees is 'some': write sees=all, or leave it out"),
        ("a,waiting=some", "waiting is 'some': give a whole number of at least 1"),
        ("a,running=0", "running is '0'"),
        ("a,share=inf", "share is 'inf': give a number above 0"),
        ("*,weight=-1", "weight is '-1'"),
    ],
)
def test_what_is_no_limit_is_refused_by_name_and_value(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_tenants(text)


def test_a_tenant_alone_and_tenants_who_used_their_shares_are_alike() -> None:
    shares = FairShares(parse_tenants("big,share=3"))
    assert not shares.favours(0.0)
    shares.started("big", 30.0, 0.0)
    assert shares.favour("big") == 1.0
    shares.started("small", 10.0, 0.0)
    assert [shares.favour(name) for name in ("big", "small")] == [1.0, 1.0]
    shares.started("small", 40.0, 0.0)
    assert shares.favour("small") == pytest.approx((1 / 4) / (50 / 80))
    assert shares.favour("big") == pytest.approx((3 / 4) / (30 / 80))


def test_who_has_used_nothing_among_others_is_favoured_most_and_use_is_forgotten() -> None:
    shares = FairShares(Tenants())
    shares.started("busy", 100.0, 0.0)
    assert shares.favour("new") == 16.0
    assert shares.favour("") == 1.0
    shares.started("new", 1e-6, 1.0)
    assert shares.favour("busy") == pytest.approx(0.5)
    assert shares.favours(2.0)
    assert not shares.favours(40 * HALF_LIFE_SECONDS)
    assert shares.favour("busy") == 1.0


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(1e-3, 1e3), st.floats(0, 500)), max_size=30
    )
)
def test_no_tenant_is_favoured_beyond_bounds_and_who_used_less_is_not_favoured_less(
    story: list[tuple[str, float, float]],
) -> None:
    shares, now, used = FairShares(Tenants()), 0.0, dict.fromkeys("abc", 0.0)
    for tenant, seconds, passed in story:
        now += passed
        used = {name: one * 0.5 ** (passed / HALF_LIFE_SECONDS) for name, one in used.items()}
        used[tenant] += seconds
        shares.started(tenant, seconds, now)
    found = [shares.favour(name) for name in sorted(used, key=used.__getitem__)]
    assert all(1 / 16 <= one <= 16 for one in found)
    assert all(one >= other * (1 - 1e-6) for one, other in pairwise(found))


def test_threads_are_shared_in_proportion_and_what_is_urgent_goes_first() -> None:
    shares = FairShares(parse_tenants("three,share=3"))
    loads = {"one": 2.0, "three": 1.0}
    queue = TaskQueue(
        load=lambda tenant: loads[str(tenant)],
        max_tasks=1000,
        max_bytes=1000,
        ageing_seconds=1e6,
    )
    for number in range(200):
        for tenant in loads:
            queue.push(Waiting(f"{tenant}{number}", "k", tenant, loads[tenant], float(number)))
    queue.push(Waiting("urgent", "k", "one", 1000.0, 200.0))
    began, used = [], dict.fromkeys(loads, 0.0)
    for now in range(100):
        item = queue.take(0.0, lambda _: True, Terms(favour=lambda name: shares.favour(str(name))))
        assert item is not None
        began.append(item.id)
        tenant = str(item.cost_class)
        shares.started(tenant, loads[tenant], float(now))
        used[tenant] += loads[tenant]
    assert began[0] == "urgent"
    assert used["three"] / used["one"] == pytest.approx(3, rel=0.15)
