"""Names that scripts, manifests, dashboards and other packages rely on stay as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from public_names import public_names

KEPT: dict[str, list[str]] = json.loads((Path(__file__).parent / "public_names.json").read_text())


@pytest.mark.parametrize("kind", KEPT)
def test_no_public_name_is_lost_and_a_new_one_is_written_down(kind: str) -> None:
    now = set(public_names()[kind])
    kept = set(KEPT[kind])
    assert sorted(kept - now) == [], "gone: somebody's scripts rely on it"
    assert sorted(now - kept) == [], (
        "new: `python hack/public_names.py > tests/packaging/public_names.json`"
    )
    assert len(kept) > 4
