"""Traces as people give them: what is read, and what a bad line is told."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from llmtaskpool_operator.simulation.trace import TraceError, parse, read

HEADER = "arrival_s,prompt_tokens,output_tokens\n"


def test_three_columns_mean_nothing_is_cached() -> None:
    trace = parse([HEADER, "0,10,5\n", "1.5,20,6\n"], "t.csv")
    assert trace.arrival.tolist() == [0.0, 1.5]
    assert trace.uncached.tolist() == [10, 20]


def test_the_fourth_column_is_what_has_to_be_computed() -> None:
    trace = parse(["a,b,c,d\n", "0,10,5,0\n"], "t.csv")
    assert (trace.prompt.tolist(), trace.uncached.tolist()) == ([10], [0])


def test_lines_may_come_in_any_order_and_blank_ones_are_passed_over() -> None:
    trace = parse([HEADER, "5,10,5\n", "\n", "1,20,6\n"], "t.csv")
    assert trace.arrival.tolist() == [1.0, 5.0]
    assert trace.prompt.tolist() == [20, 10]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t"])
def test_gzip_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    text = (HEADER + "0,10,5\n").encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name != "t.csv" else text)
    assert len(read(path)) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x,10,5", "line 2, column 1 (arrival in seconds): 'x' is no time"),
        ("-1,10,5", "column 1 (arrival in seconds): '-1' is no time"),
        ("nan,10,5", "column 1 (arrival in seconds): 'nan' is no time"),
        ("0,ten,5", "column 2 (prompt tokens): 'ten': give a whole number from 1"),
        ("0,0,5", "column 2 (prompt tokens): '0': give a whole number from 1"),
        ("0,10,1e99", "column 3 (output tokens): '1e99': give a whole number from 1"),
        ("0,10,2.0", "column 3 (output tokens): '2.0': give a whole number without a point"),
        ("0,10", "line 2: has 2 values: the header has 3 columns"),
        ("0,10,5,7", "line 2: has 4 values: the header has 3 columns"),
    ],
)
def test_a_bad_line_is_named_with_its_column_value_and_remedy(line: str, said: str) -> None:
    with pytest.raises(TraceError) as error:
        parse([HEADER, line + "\n"], "t.csv")
    assert str(error.value).startswith("t.csv line 2")
    assert said in str(error.value)


def test_more_uncached_than_prompt_tokens_is_refused() -> None:
    with pytest.raises(TraceError, match=r"column 4 .* '11' is more than the 10"):
        parse(["a,b,c,d\n", "0,10,5,11\n"], "t.csv")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "is empty"),
        (["0,10,5\n"], "is no header"),
        (["a,b\n"], "has 2 columns"),
        ([HEADER], "no requests"),
    ],
)
def test_a_file_that_is_no_trace_says_why(lines: list[str], said: str) -> None:
    with pytest.raises(TraceError, match=said):
        parse(lines, "t.csv")


@pytest.mark.parametrize("content", [None, b"\x1f\x8bgarbage", b"\xff\xfe\x00a"])
def test_a_file_that_cannot_be_read_says_so(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TraceError, match="cannot be read"):
        read(path)
