"""helm, built by the rig (`make rig`), and promtool, unpacked from Debian's package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rig import build, debian
from rig.pins import ALL

sys.path.insert(0, str(Path(__file__).parent))
from charts import Helm


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    binary = next(binary for binary in ALL if binary.name == "helm")
    build.build([binary], build.cache_folder(), print)
    return Helm(build.path_of(binary, build.cache_folder()), tmp_path_factory.mktemp("values"))


@pytest.fixture(scope="session")
def promtool() -> Path:
    return debian.unpacked("prometheus", build.cache_folder()) / "usr" / "bin" / "promtool"
