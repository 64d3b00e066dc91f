"""The burst in docs/concepts.md is what the law does today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_numbers_beside_the_picture_are_those_of_the_law_as_it_is() -> None:
    spec = importlib.util.spec_from_file_location("picture", ROOT / "hack" / "concept_picture.py")
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    _, outcome = picture.run()
    told = f"Of {outcome.requests:,} requests {100 * outcome.slo:.1f} % met their objectives"
    assert told in (ROOT / "docs" / "concepts.md").read_text(), (
        f"{told}: run `python hack/concept_picture.py`, and write its numbers to docs/concepts.md"
    )
