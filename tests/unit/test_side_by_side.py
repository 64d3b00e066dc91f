"""The table of the groups that run side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from side_by_side import GROUPS, group_of, turn_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("place", [place for group in GROUPS for place in group.places])
def test_a_place_that_the_table_names_is_there_and_no_line_above_hides_it(place: str) -> None:
    assert (ROOT / place).exists()
    assert group_of(f"{place}/x.py::test") == group_of(f"{place}::test")
    (group,) = [group for group in GROUPS if place in group.places]
    assert group_of(f"{place}::test") == group.places[0]


def test_a_file_that_no_group_names_is_one_of_its_own_and_begins_after_them() -> None:
    tests = ["tests/new/test_a.py::test_x", "tests/new/test_a.py::test_y[a::b]"]
    assert {group_of(test) for test in tests} == {"tests/new/test_a.py"}
    assert group_of("tests/new/test_b.py::test_x") == "tests/new/test_b.py"
    assert turn_of(tests[0]) > max(turn_of(group.places[0]) for group in GROUPS)


def test_a_new_file_about_the_cluster_shares_the_cluster_with_the_others() -> None:
    assert group_of("tests/cluster/test_new.py::test_x") == group_of("tests/cluster/test_crd.py::t")
