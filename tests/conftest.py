"""What pytest does here for all tests.

With `-n` it shares them out to processes by the groups of side_by_side.py; without, all run in one.
"""

from __future__ import annotations

import faulthandler
import gc
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from kindrig import choice
from side_by_side import Groups, group_of, turn_of

ROOT = Path(__file__).parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    # torch with a thread for each core falls to a tenth when neighbours keep the cores busy: each
    # operation ends with a barrier. Read when torch is imported, here and by engines' processes.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

CLUSTERS = {"cluster": {"cluster": False, "api_server": True}, "e2e": {"node": False}}
"""Fixtures that give a cluster, by folder, and whether an API server alone is enough for them."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    config.option.loadscopereorder = False  # the order is that of the table
    return Groups(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let the garbage collector pass over what tests import: a million objects, and all stay.

    Half of the time of a collection went into it, and then seconds whenever it looked for garbage.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


BY_HAND = ("vllm", "whisper")
"""Marks of what is run before a release: it needs what not everybody has."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for folder, fixtures in CLUSTERS.items():
        here = [item for item in items if item.nodeid.startswith(f"tests/{folder}/")]
        shared = [item for item in here if fixtures.keys() & set(getattr(item, "fixturenames", ()))]
        if len(groups := {group_of(item.nodeid) for item in shared}) > 1:
            told = f"{sorted(groups)} share a cluster: let side_by_side.py keep them together"
            raise pytest.UsageError(told)
    for mark in BY_HAND:
        if mark not in config.option.markexpr:
            by_hand = [item for item in items if item.get_closest_marker(mark) is not None]
            config.hook.pytest_deselected(items=by_hand)
            items[:] = [item for item in items if item.get_closest_marker(mark) is None]
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: turn_of(item.nodeid))


def pytest_report_collectionfinish(items: list[pytest.Item]) -> list[str]:
    """Which cluster was chosen, and why, when all tests run in this process."""
    return [
        line
        for folder, fixtures in CLUSTERS.items()
        for line in choice.lines(ROOT / "tests" / folder, items, fixtures)
    ]


def pytest_configure(config: pytest.Config) -> None:
    # No test asserts a time, so no example has a deadline of its own either.
    hypothesis.settings.register_profile("ours", deadline=None)
    hypothesis.settings.load_profile("ours")
    config.pluginmanager.register(Told(config))
    if config.getoption("maxworkerrestart", 0) is None:
        # A process that ended because a test hangs would be replaced, and the next hang likewise.
        config.option.maxworkerrestart = "0"
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Hung(os.dup(2)))


class Told:
    """Prints what tests `say`, wherever they run; and the choice of a cluster, once."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._collected = False

    def _print(self, *lines: str) -> None:
        terminal = self._config.pluginmanager.getplugin("terminalreporter")
        terminal.write("\n" + "".join(f"{line}\n" for line in lines))  # dots may stand before it

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said = [str(text) for name, text in report.user_properties if name == "said"]
        if report.when == "call" and said:
            self._print(*said)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Which cluster was chosen, and why: processes that run tests print nothing themselves."""
        if self._collected:
            return
        self._collected = True
        for folder, fixtures in CLUSTERS.items():
            if any(test.startswith(f"tests/{folder}/") for test in ids):
                self._print(*choice.told(f"tests/{folder}", fixtures))


class Hung:
    """Shows where a test hangs whose process is about to be ended for it (pytest-timeout).

    pytest-timeout shows that too, on the standard output, which such a process does not have.
    """

    def __init__(self, output: int) -> None:
        self._output = output

    @pytest.hookimpl(wrapper=True)
    def pytest_timeout_set_timer(self, settings: Any) -> Generator[None, object, object]:
        faulthandler.dump_traceback_later(max(0.1, settings.timeout - 1), file=self._output)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_timeout_cancel_timer(self) -> Generator[None, object, object]:
        faulthandler.cancel_dump_traceback_later()
        return (yield)


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Tell a measured number to whoever runs the tests, from whichever process."""

    def said(text: str) -> None:
        request.node.user_properties.append(("said", text))

    return said
