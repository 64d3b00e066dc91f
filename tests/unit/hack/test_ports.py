"""Ports that the rig and the tests choose before somebody listens on them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from rig import ports

RIG = Path(__file__).parents[3] / "hack" / "cluster"
CHOOSE = """
import random
from rig import ports
random.Random.sample = lambda self, population, count: list(population)[:count]
print(*ports.choose("127.0.0.1", 2))
"""


def test_two_processes_that_choose_at_once_get_different_ports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(random.Random, "sample", lambda _, found, count: list(found)[:count])
    ours = {*ports.choose("127.0.0.1", 2), *ports.choose("127.0.0.1", 2)}
    asked = [sys.executable, "-c", CHOOSE]
    environment = os.environ | {"PYTHONPATH": str(RIG)}
    other = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    theirs = {int(word) for word in other.stdout.split()}
    assert len(ours) == 4
    assert len(theirs) == 2
    assert ours & theirs == set()
    assert all(ports.is_free("127.0.0.1", port) for port in ours)  # for whoever starts there
