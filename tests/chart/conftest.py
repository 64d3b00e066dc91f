"""helm, built by the rig (`make rig`), and promtool, unpacked from Debian's package."""

from __future__ import annotations

from pathlib import Path

import pytest
from chart.charts import Helm, helm_with
from rig import build, debian


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return helm_with(tmp_path_factory.mktemp("values"))


@pytest.fixture(scope="session")
def promtool() -> Path:
    return debian.unpacked("prometheus", build.cache_folder()) / "usr" / "bin" / "promtool"
