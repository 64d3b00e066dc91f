from __future__ import annotations

from llmtaskpool_worker.scheduling.priority import aged, order, priority


def test_the_articles_example_runs_in_the_articles_order() -> None:
    first_to_last = order([0.5, 0.3, 0.1, 0.1, 0.1], [0.2, 0.3, 0.4, 0.3, 0.2])
    assert [index + 1 for index in first_to_last] == [1, 2, 5, 4, 3]


def test_equal_tasks_keep_the_order_they_came_in() -> None:
    assert order([1.0, 2.0, 1.0], [1.0, 2.0, 1.0]) == [0, 1, 2]


def test_a_task_that_seems_free_gets_no_endless_priority() -> None:
    assert priority(1.0, 0.0) == priority(1.0, 1e-6) == 1e6


def test_a_task_ages_at_its_bound() -> None:
    assert not aged(0.0, 9.9, 10.0)
    assert aged(0.0, 10.0, 10.0)
