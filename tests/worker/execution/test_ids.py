from __future__ import annotations

from uuid import UUID

from llmtaskpool_worker.execution.ids import ids, short_ids


def test_ids_are_uuids_of_version_7_that_rise_though_the_clock_goes_back() -> None:
    times = iter([2_000_000_000_000_000_000, 2_000_000_000_000_000_000, 10**18, 3 * 10**18])
    new_id = ids(lambda: next(times))
    made = [new_id() for _ in range(4)]
    assert made == sorted(set(made))
    assert [UUID(one).version for one in made] == [7] * 4
    assert int(made[0][:12], 16) == 2_000_000_000_000


def test_short_ids_sort_by_their_time_and_are_no_ones_twice() -> None:
    """As texts, which is how a server sorts them, though the clock goes back or stands still."""
    times = iter([2e9, 1.9e9, 1.9e9, 2.1e9, 1e9, 4e9])
    new_id = short_ids(lambda: int(next(times) * 1e9))
    made = [new_id() for _ in range(6)]
    assert made == sorted(set(made))
    assert all(len(one) == 16 and one.isalnum() and one.isascii() for one in made)
    others = [short_ids(lambda: 2 * 10**18)() for _ in range(2000)]
    assert len(set(others)) == 2000
    assert made[0][:5] == others[0][:5], "ids of one time begin alike, whoever makes them"
