from __future__ import annotations

from uuid import UUID

from llmtaskpool_worker.execution.ids import ids


def test_ids_are_uuids_of_version_7_that_rise_though_the_clock_goes_back() -> None:
    times = iter([2_000_000_000_000_000_000, 2_000_000_000_000_000_000, 10**18, 3 * 10**18])
    new_id = ids(lambda: next(times))
    made = [new_id() for _ in range(4)]
    assert made == sorted(set(made))
    assert [UUID(one).version for one in made] == [7] * 4
    assert int(made[0][:12], 16) == 2_000_000_000_000
