"""What may be told of a value or an error: short, never content, a traceback or a path."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import PurePath


def shown(value: object) -> str:
    """A value as an error message may show it: short, and never a container's content."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int) and value.bit_length() > 128:
        return "a whole number of more than 38 digits"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence):
        return f"a list of {len(value)}"
    return "a value"


def where_raised(error: BaseException) -> str:
    """Class and place of an exception, and not its message, which may hold a client's words."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return type(error).__name__ + place
