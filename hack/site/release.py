"""A MkDocs hook: which version the pages are about, for the bar above them (overrides/main.html).

The version is the one of pyproject.toml. It is unreleased until CHANGELOG.md has a heading for it.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set `extra.release` and `extra.unreleased`."""
    root = Path(config.docs_dir).parent
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    changes = (root / "CHANGELOG.md").read_text()
    heading = rf"^## \[?{re.escape(version)}(?![\w.])"
    config.extra["release"] = version
    config.extra["unreleased"] = re.search(heading, changes, re.MULTILINE) is None
    return config
