"""Which tests run side by side when `make unit` shares them out to processes.

The tests of a group run one after the other in one process. The groups begin in the order in
which they stand here, as processes get free; then begins what no group names, a file at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdist.scheduler import LoadScopeScheduling


@dataclass(frozen=True, slots=True)
class Group:
    """``places``: files and folders. A test is of the first group that names a place of it."""

    why: str
    places: tuple[str, ...]


_WAITS = "waits for minutes, on a control plane of its own: begins first, or all wait for it"
GROUPS = (
    Group(_WAITS, ("tests/cluster/test_operator_faults.py",)),
    Group(_WAITS, ("tests/cluster/test_operator_outages.py",)),
    Group(_WAITS, ("tests/cluster/test_installs.py",)),
    Group(_WAITS, ("tests/cluster/test_what_people_are_told.py",)),
    Group(
        "computes for minutes, on one core",
        ("tests/simulation/test_day_of_the_operator.py",),
    ),
    *(
        Group("computes for a minute or more, on one core", (place,))
        for place in (
            "tests/engine/test_engine_process.py",
            "tests/engine/test_engine_protocol.py",
            "tests/engine/test_generation.py",
            "tests/engine/test_sampling_range.py",
            "tests/local/test_real_local.py",
            "tests/worker/calibration",
        )
    ),
    Group("computes", ("tests/engine",)),
    Group(
        "measures a process: of these tests one runs at a time",
        (
            "tests/worker/assembly",
            "tests/worker/http_api/test_http_process.py",
            "tests/worker/http_api/test_turns.py",
        ),
    ),
    Group("floods and kills: the worker and the front at their bounds", ("tests/worker/http_api",)),
    Group(
        "waits while workers and servers of the shared queue are killed: computes little",
        ("tests/worker/brokers/test_queue_faults.py",),
    ),
    Group("real processes that start, drain and end", ("tests/local", "tests/worker")),
    Group(_WAITS, ("tests/cluster/test_odd_metrics.py",)),
    Group(
        "one cluster for all who use the fixture `cluster`, which may be one that has a name",
        ("tests/cluster",),
    ),
    Group("one node", ("tests/e2e",)),
)


def group_of(test: str) -> str:
    """A name for the group of a test, which is given by its id."""
    file = test.split("::", 1)[0]
    for group in GROUPS:
        if any(file == place or file.startswith(f"{place}/") for place in group.places):
            return group.places[0]
    return file


def turn_of(test: str) -> int:
    """The place of a test's group among all of them."""
    turns = {group.places[0]: number for number, group in enumerate(GROUPS)}
    return turns.get(group_of(test), len(GROUPS))


class Groups(LoadScopeScheduling):
    """Gives each process that is free the next group."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
