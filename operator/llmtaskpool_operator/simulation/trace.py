"""Traces: who asked when for how much. A CSV with a header, in plain text or gzip."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MOST_TOKENS = 10_000_000
_COLUMNS = ("arrival in seconds", "prompt tokens", "output tokens", "uncached prompt tokens")


class TraceError(ValueError):
    """What is wrong with a trace: file, line, column, value and remedy in one line."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival; all arrays have the same length, at least 1.

    ``arrival`` in seconds from the start, ``uncached`` the prompt tokens that have to be
    computed (the others are found in a prefix cache), never more than ``prompt``.
    """

    arrival: NDArray[np.float64]
    prompt: NDArray[np.int64]
    output: NDArray[np.int64]
    uncached: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def seconds(self) -> float:
        """When the last request arrives."""
        return float(self.arrival[-1])

    def until(self, seconds: float) -> Trace:
        """The requests that arrive before ``seconds``."""
        return self.chosen(self.arrival < seconds)

    def chosen(self, which: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Trace:
        """Some of the requests, in the same order."""
        return Trace(
            self.arrival[which], self.prompt[which], self.output[which], self.uncached[which]
        )


def of_rows(rows: Iterable[tuple[float, int, int, int]]) -> Trace:
    """A trace of (arrival, prompt, output, uncached prompt) in any order."""
    table = np.array(list(rows), dtype=np.float64).reshape(-1, 4)
    table = table[np.argsort(table[:, 0], kind="stable")]
    whole = table[:, 1:].astype(np.int64)
    return Trace(
        table[:, 0].copy(), whole[:, 0].copy(), whole[:, 1].copy(),
        np.minimum(whole[:, 2], whole[:, 0]),
    )  # fmt: skip


def read(path: Path) -> Trace:
    """The trace in ``path``. Raises TraceError, also where the file can't be read."""
    try:
        with _opened(path) as lines:
            return parse(lines, path.name)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is neither text nor gzip"
        raise TraceError(f"{path}: cannot be read: {said}") from error


def parse(lines: Iterable[str], name: str) -> Trace:
    """The trace in the lines of a CSV; ``name`` is what errors call it."""
    rows = csv.reader(lines)
    header = next(rows, None)
    if not header:
        raise TraceError(f"{name}: is empty: give a header and a line for each request")
    if all(_is_number(cell) for cell in header):
        raise TraceError(
            f"{name} line 1: {','.join(header)!r} is no header: "
            "put one above, such as arrival_s,prompt_tokens,output_tokens"
        )
    if len(header) not in (3, 4):
        raise TraceError(
            f"{name} line 1: has {len(header)} columns: give {', '.join(_COLUMNS[:3])}, "
            "and optionally uncached prompt tokens"
        )
    found = [
        _row(cells, len(header), f"{name} line {number}")
        for number, cells in enumerate(rows, 2)
        if cells
    ]
    if not found:
        raise TraceError(f"{name}: has a header and no requests: give a line for each request")
    return of_rows(found)


def _row(cells: list[str], width: int, where: str) -> tuple[float, int, int, int]:
    if len(cells) != width:
        raise TraceError(f"{where}: has {len(cells)} values: the header has {width} columns")
    try:
        at, prompt, output = float(cells[0]), int(cells[1]), int(cells[2])
        uncached = int(cells[3]) if width == 4 else prompt
    except ValueError:
        raise _told(cells, where) from None
    if not (
        isfinite(at) and at >= 0 and 1 <= prompt <= MOST_TOKENS and 1 <= output <= MOST_TOKENS
        and 0 <= uncached <= prompt
    ):  # fmt: skip
        raise _told(cells, where)
    return at, prompt, output, uncached


def _told(cells: list[str], where: str) -> TraceError:
    """The error of the first value of a row that can't be one."""
    for column, text in enumerate(cells):
        value = _number(text)
        said = f"{where}, column {column + 1} ({_COLUMNS[column]}): {text!r}"
        if column == 0:
            if value is None or value < 0:
                return TraceError(f"{said} is no time: give seconds from the start, 0 or more")
            continue
        least = 0 if column == 3 else 1
        if value is None or value != int(value) or not least <= value <= MOST_TOKENS:
            return TraceError(f"{said}: give a whole number from {least} to {MOST_TOKENS}")
        if not text.strip().lstrip("+").isdecimal():
            return TraceError(f"{said}: give a whole number without a point or exponent")
    return TraceError(
        f"{where}, column 4 ({_COLUMNS[3]}): {cells[3]!r} is more than the {cells[1]} "
        "prompt tokens: give at most those"
    )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _is_number(text: str) -> bool:
    return _number(text) is not None


def _opened(path: Path):  # type: ignore[no-untyped-def] # a text file, by either way
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rt", newline="") if packed else path.open(newline="")
