"""Names that scripts, manifests, dashboards and other packages rely on stay as they were."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KEPT: dict[str, list[str]] = json.loads((Path(__file__).parent / "public_names.json").read_text())
PROGRAM = Path(__file__).parents[2] / "hack" / "public_names.py"


@pytest.fixture(scope="module")
def printed() -> dict[str, list[str]]:
    """What the program prints. Run, not imported: on the path, hack/chart.py would hide a room."""
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, check=True)
    names: dict[str, list[str]] = json.loads(done.stdout)
    return names


@pytest.mark.parametrize("kind", KEPT)
def test_no_public_name_is_lost_and_a_new_one_is_written_down(
    kind: str, printed: dict[str, list[str]]
) -> None:
    assert sorted(printed) == sorted(KEPT)
    now = set(printed[kind])
    kept = set(KEPT[kind])
    assert sorted(kept - now) == [], "gone: somebody's scripts rely on it"
    assert sorted(now - kept) == [], (
        "new: `python hack/public_names.py > tests/packaging/public_names.json`"
    )
    assert len(kept) > 4
