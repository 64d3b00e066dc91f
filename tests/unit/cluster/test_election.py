"""Who leads, with a Lease in memory and virtual time: never two at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fakes.memory_api import Call, MemoryApi
from fakes.virtual_time import clock, run
from llmtaskpool_operator.cluster.api_client import ApiFailure
from llmtaskpool_operator.cluster.election import Election

LEASE, RENEW, RETRY = 15.0, 10.0, 2.0
NAMESPACE = "llmtaskpool-system"


class Replica:
    """One replica of the operator; ``led`` are the times from which and up to which it led."""

    def __init__(self, api: Any, name: str, wall: Callable[[], float] | None = None) -> None:
        self.name = name
        self.led: list[list[float]] = []
        self.election = Election(
            api,
            name="lease",
            namespace=NAMESPACE,
            identity=name,
            clock=clock,
            wall=wall or (lambda: 1.8e9 + clock()),
        )
        self.task = asyncio.create_task(self.election.run(self.lead))

    async def lead(self) -> None:
        self.led.append([clock()])
        try:
            await asyncio.Event().wait()
        finally:
            self.led[-1].append(clock())

    @property
    def leads(self) -> bool:
        return self.election.leads()

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def vanish(self) -> None:
        """As a process that is killed, or stands still: no request goes out any more."""
        self.election._api = Cut()


class Cut:
    """A network on which no request is answered."""

    def __getattr__(self, verb: str) -> Any:
        async def hang(*_: Any) -> None:
            await asyncio.Event().wait()

        return hang


class Link:
    """One replica's own way to the server, which can fail."""

    def __init__(self, api: MemoryApi) -> None:
        self.api = api
        self.failure: Exception | None = None

    def __getattr__(self, verb: str) -> Any:
        async def request(*arguments: Any) -> Any:
            if self.failure is not None:
                raise self.failure
            return await getattr(self.api, verb)(*arguments)

        return request


def holder(api: MemoryApi) -> str:
    return api.find("Lease", NAMESPACE, "lease")["spec"]["holderIdentity"]


async def stopped(*replicas: Replica) -> None:
    for replica in replicas:
        await replica.stop()


def test_a_single_replica_leads_at_once_and_goes_on():
    async def main():
        api = MemoryApi()
        one = Replica(api, "one")
        began = clock()
        await asyncio.sleep(300)
        assert one.leads
        assert one.led == [[began]]
        assert holder(api) == "one"
        await stopped(one)

    run(main())


def test_of_many_replicas_one_leads():
    async def main():
        api = MemoryApi()
        replicas = [Replica(api, f"r{number}") for number in range(5)]
        for _ in range(100):
            await asyncio.sleep(1)
            assert sum(replica.leads for replica in replicas) == 1
        assert sum(len(replica.led) for replica in replicas) == 1
        await stopped(*replicas)

    run(main())


def test_two_that_ask_at_the_same_moment_do_not_both_get_it():
    """Both have read the lease before either writes: the version decides."""

    async def main():
        for existing in (False, True):
            api = MemoryApi()
            if existing:
                first = Replica(api, "first")
                await asyncio.sleep(1)
                await first.stop()

            async def slow(call: Call) -> None:
                if call[0] in ("create", "replace"):
                    await asyncio.sleep(0.1)

            api.before = slow
            both = [Replica(api, "one"), Replica(api, "two")]
            await asyncio.sleep(1)
            assert sum(replica.leads for replica in both) == 1
            await stopped(*both)

    run(main())


def test_another_takes_over_only_after_the_lease_lasted_on_its_own_clock():
    async def main():
        api = MemoryApi()
        one = Replica(api, "one")
        await asyncio.sleep(1)
        two = Replica(api, "two")
        await asyncio.sleep(60)
        assert not two.led
        renewed_before = clock()
        one.vanish()
        await asyncio.sleep(60)
        assert two.leads
        assert not one.leads
        took = two.led[0][0]
        assert LEASE - RETRY <= took - renewed_before <= LEASE + 2 * RETRY
        spec = api.find("Lease", NAMESPACE, "lease")["spec"]
        assert spec["leaseTransitions"] == 1
        await stopped(one, two)

    run(main())


def test_a_newcomer_believes_no_old_time_in_a_lease_and_waits_a_whole_lease():
    """A lease that says it was renewed a year ago may be that of somebody with another clock."""

    async def main():
        api = MemoryApi()
        old = {"holderIdentity": "old", "renewTime": "2020-01-01T00:00:00.000000Z"}
        api.put(
            {
                "kind": "Lease",
                "metadata": {"namespace": NAMESPACE, "name": "lease"},
                "spec": old | {"leaseDurationSeconds": 15},
            }
        )
        began = clock()
        one = Replica(api, "one")
        await asyncio.sleep(60)
        assert LEASE <= one.led[0][0] - began <= LEASE + RETRY
        await stopped(one)

    run(main())


@pytest.mark.parametrize("skew", [-86_400.0, 86_400.0])
def test_how_far_clocks_on_the_wall_differ_does_not_matter(skew):
    async def main():
        api = MemoryApi()
        one = Replica(api, "one", wall=lambda: 1.8e9 + clock())
        await asyncio.sleep(1)
        two = Replica(api, "two", wall=lambda: 1.8e9 + skew + clock())
        for _ in range(100):
            await asyncio.sleep(1)
            assert one.leads
            assert not two.leads
        one.vanish()
        await asyncio.sleep(LEASE + 2 * RETRY + RENEW)
        assert two.leads
        await stopped(one, two)

    run(main())


@pytest.mark.parametrize(
    "failure", [ApiFailure(500, "500: no"), ApiFailure(0, "no answer"), ApiFailure(403, "403: no")]
)
def test_who_can_not_renew_stops_before_another_may_begin(failure):
    async def main():
        api = MemoryApi()
        link = Link(api)
        one = Replica(link, "one")
        await asyncio.sleep(1)
        two = Replica(api, "two")
        await asyncio.sleep(30)
        link.failure = failure
        failing_since = clock()
        while not two.leads:
            assert clock() < failing_since + 60
            await asyncio.sleep(0.1)
            assert one.leads is False or clock() <= failing_since + RENEW
        assert one.led[0][1] <= failing_since + RENEW + RETRY
        assert one.led[0][1] < two.led[0][0]
        link.failure = None
        await asyncio.sleep(30)
        assert two.leads
        assert not one.leads
        await stopped(one, two)

    run(main())


def test_behind_a_server_that_hangs_the_fence_closes_and_the_work_ends_before_the_lease():
    async def main():
        api = MemoryApi()
        one = Replica(api, "one")
        await asyncio.sleep(30.5)
        two = Replica(api, "two")
        await asyncio.sleep(30)
        hanging_since = clock()
        one.vanish()
        closed = None
        while len(one.led[0]) == 1:
            await asyncio.sleep(0.1)
            if closed is None and not one.leads:
                closed = clock()
            assert clock() < hanging_since + 60
        assert closed is not None
        assert closed - hanging_since <= RENEW + 0.2
        assert one.led[0][1] - hanging_since < LEASE
        await asyncio.sleep(60)
        assert one.led[0][1] < two.led[0][0]
        await stopped(one, two)

    run(main())


def test_one_failed_renewal_is_no_reason_to_stop():
    async def main():
        api = MemoryApi()
        link = Link(api)
        one = Replica(link, "one")
        await asyncio.sleep(10)
        link.failure = ApiFailure(500, "500: no")
        await asyncio.sleep(RENEW - 2 * RETRY)
        link.failure = None
        await asyncio.sleep(30)
        assert one.leads
        assert len(one.led) == 1
        await stopped(one)

    run(main())


def test_who_lost_the_lease_leads_again_when_it_can():
    async def main():
        api = MemoryApi()
        link = Link(api)
        one = Replica(link, "one")
        await asyncio.sleep(10)
        link.failure = ApiFailure(0, "no answer")
        await asyncio.sleep(60)
        assert not one.leads
        link.failure = None
        await asyncio.sleep(RETRY + 1)
        assert one.leads
        assert len(one.led) == 2
        await stopped(one)

    run(main())


def test_who_is_told_to_stop_lets_another_have_it_at_once():
    async def main():
        api = MemoryApi()
        one = Replica(api, "one")
        await asyncio.sleep(1)
        two = Replica(api, "two")
        await asyncio.sleep(60)
        stopped_at = clock()
        await one.stop()
        assert not one.leads
        assert holder(api) == ""
        assert len(one.led[0]) == 2
        await asyncio.sleep(RETRY + 0.1)
        assert two.leads
        assert two.led[0][0] - stopped_at <= RETRY
        await stopped(two)

    run(main())


def test_who_stops_without_leading_leaves_the_lease_alone():
    async def main():
        api = MemoryApi()
        one = Replica(api, "one")
        await asyncio.sleep(1)
        two = Replica(api, "two")
        await asyncio.sleep(5)
        await two.stop()
        assert holder(api) == "one"
        await asyncio.sleep(30)
        assert one.leads
        await stopped(one)

    run(main())


def test_a_lease_that_somebody_took_by_hand_is_not_given_up_for_them():
    async def main():
        api = MemoryApi()
        one = Replica(api, "one")
        await asyncio.sleep(1)
        lease = api.find("Lease", NAMESPACE, "lease")
        lease["spec"]["holderIdentity"] = "somebody"
        api.put(lease)
        await one.stop()
        assert holder(api) == "somebody"

    run(main())


def test_a_server_that_hangs_does_not_keep_a_replica_from_stopping():
    async def main():
        one = Replica(MemoryApi(), "one")
        await asyncio.sleep(1)
        one.vanish()
        began = clock()
        await one.stop()
        assert clock() - began <= RENEW / 2 + 0.1

    run(main())


def test_what_the_leader_raises_ends_the_election_and_gives_up_the_lease():
    async def main():
        api = MemoryApi()

        async def lead() -> None:
            await asyncio.sleep(3)
            raise RuntimeError("a bug")

        election = Election(
            api, name="lease", namespace=NAMESPACE, identity="one", clock=clock, wall=clock
        )
        with pytest.raises(RuntimeError, match="a bug"):
            await election.run(lead)
        assert holder(api) == ""

    run(main())


def test_a_lease_is_written_as_others_read_it():
    async def main():
        api = MemoryApi()
        one = Replica(api, "one")
        await asyncio.sleep(10)
        lease = api.find("Lease", NAMESPACE, "lease")
        assert lease["apiVersion"] == "coordination.k8s.io/v1"
        spec = lease["spec"]
        assert spec["leaseDurationSeconds"] == 15
        assert spec["leaseTransitions"] == 0
        for name in ("acquireTime", "renewTime"):
            assert len(spec[name]) == len("2026-01-01T00:00:00.000000Z")
            assert spec[name].endswith("Z")
        assert spec["acquireTime"] < spec["renewTime"]
        await stopped(one)

    run(main())


def test_a_server_that_forgot_the_lease_is_given_it_anew():
    async def main():
        api = MemoryApi()
        one = Replica(api, "one")
        await asyncio.sleep(5)
        api.objects.clear()
        await asyncio.sleep(RETRY + 1)
        assert holder(api) == "one"
        assert len(one.led) == 1
        await stopped(one)

    run(main())


def test_a_lease_goes_with_its_owner_also_one_that_was_left_by_an_earlier_install():
    async def main():
        owner = {"apiVersion": "v1", "kind": "ServiceAccount", "name": "us", "uid": "new"}
        for existing in ({}, {"ownerReferences": [owner | {"uid": "old"}]}):
            api = MemoryApi()
            if existing:
                named = {"name": "lease", "namespace": NAMESPACE}
                api.put({"kind": "Lease", "metadata": named | existing, "spec": {}})
            election = Election(
                api,
                name="lease",
                namespace=NAMESPACE,
                identity="one",
                clock=clock,
                wall=clock,
                owner=owner,
            )
            task = asyncio.create_task(election.run(asyncio.Event().wait))
            await asyncio.sleep(1)
            lease = api.find("Lease", NAMESPACE, "lease")
            assert lease["metadata"]["ownerReferences"] == [owner]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main())


def test_who_stands_by_says_once_who_leads_and_by_which_lease(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        api = MemoryApi()
        one = Replica(api, "one")
        await asyncio.sleep(1)
        two = Replica(api, "two")
        await asyncio.sleep(60)
        await stopped(one, two)

    with caplog.at_level("INFO"):
        run(main())
    said = [line for line in caplog.messages if "stands by" in line]
    assert said == [f"two stands by: one leads, by Lease {NAMESPACE}/lease"]
