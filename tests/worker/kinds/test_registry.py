"""The registry of kinds and what installed packages add to it."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from llmtaskpool_worker.contract import LaneName
from llmtaskpool_worker.kinds.registry import (
    ENTRY_POINT_GROUP,
    ArgumentsError,
    CallContext,
    Kind,
    Kinds,
    load_entry_points,
)


def count_words(arguments: dict, _: CallContext) -> int:
    return len(str(arguments["text"]).split())


async def wait_for_it(_: dict, __: CallContext) -> None:
    return None


class Waits:
    async def __call__(self, _: dict, __: CallContext) -> None:
        return None


PINNED = Kind("pinned", count_words, lane="io")
NOT_A_KIND = 3


def point(name: str, attribute: str) -> EntryPoint:
    return EntryPoint(name, f"{__name__}:{attribute}", ENTRY_POINT_GROUP)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    module = ModuleType(__name__)
    module.__dict__.update(globals())
    monkeypatch.setitem(sys.modules, __name__, module)


def test_functions_and_kinds_of_installed_packages_are_registered() -> None:
    kinds = Kinds()
    load_entry_points(kinds, [point("count", "count_words"), point("any", "PINNED")])
    assert kinds.names() == ["count", "pinned"]
    found = kinds.get("count")
    assert found is not None
    assert found.handler({"text": "a b c"}, CallContext("t", 0.0)) == 3


def test_what_is_no_handler_is_refused_by_its_name() -> None:
    with pytest.raises(TypeError, match=r"'odd'.*int: name a function or a Kind"):
        load_entry_points(Kinds(), [point("odd", "NOT_A_KIND")])


@pytest.mark.parametrize(
    ("kind", "lane"),
    [
        (Kind("k", count_words), LaneName.COMPUTE),
        (Kind("k", wait_for_it), LaneName.IO),
        (Kind("k", Waits()), LaneName.IO),
        (Kind("k", wait_for_it, "compute"), LaneName.COMPUTE),
        (PINNED, LaneName.IO),
    ],
)
def test_a_kind_starts_in_its_declared_lane_else_in_that_of_its_form(
    kind: Kind, lane: LaneName
) -> None:
    assert kind.first_lane is lane


@pytest.mark.parametrize("name", ["", "chat", "x" * 129, "a\nb", "taken"])
def test_names_that_are_taken_or_odd_are_refused(name: str) -> None:
    kinds = Kinds()
    kinds.register(Kind("taken", count_words))
    with pytest.raises(ValueError, match="kind"):
        kinds.register(Kind(name, count_words))
    assert kinds.names() == ["taken"]


def test_an_unknown_lane_is_refused() -> None:
    with pytest.raises(ValueError, match="lane 'gpu' is not one of"):
        Kinds().register(Kind("k", count_words, "gpu"))  # type: ignore[arg-type]  # on purpose


def test_the_kind_in_the_docs_counts_words_and_refuses_what_it_can_not_count() -> None:
    page = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    section = page.split("## Kinds of your own")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    made: dict = {}
    exec(code, made)  # noqa: S102  our own page
    kinds = Kinds()
    kinds.register(made["count"])
    kind = kinds.get("text.count")
    assert kind is not None
    assert kind.handler({"text": "a b c"}, CallContext("t", 0.0)) == {"words": 3}
    with pytest.raises(ArgumentsError, match="send the text"):
        kind.check({"text": 1})
