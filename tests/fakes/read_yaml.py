"""YAML read by libyaml: the CRD takes 20 ms so, and 200 by the reader that is all Python."""

from __future__ import annotations

from typing import Any

import yaml


def document(text: str) -> Any:
    """The one document of a text."""
    return yaml.load(text, Loader=yaml.CSafeLoader)


def documents(text: str) -> list[Any]:
    """All documents of a text, without empty ones."""
    return [one for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one]
