"""The HTTP corpus (tests/fakes/http_corpus.py) over the worker's data port."""

from __future__ import annotations

import pytest
from fakes.http_corpus import CASES, Case, Got, corpus_worker, exchange


@pytest.fixture(scope="module")
def port():
    with corpus_worker() as rig:
        yield rig.port


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_worker_answers_each_request_of_the_corpus_once_and_as_told(port: int, case: Case):
    assert exchange(port, case) == Got(case.statuses, case.kept, case.interim, case.until_closed)
