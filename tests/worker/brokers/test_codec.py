"""What is kept outside of this process comes back as it was, or not at all."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_worker.brokers.codec import (
    SCHEMA,
    Unreadable,
    decode_request,
    decode_result,
    encode_request,
    encode_result,
)
from llmtaskpool_worker.brokers.redis import books
from llmtaskpool_worker.scheduling.task import (
    Call,
    Embed,
    Embedded,
    Evaluate,
    Evaluated,
    Forward,
    Forwarded,
    Generate,
    Generated,
    Result,
    Returned,
    Row,
    Sampling,
    TaskError,
    TaskRequest,
    Tensor,
    TokenLogprob,
    Transcribe,
)

REQUESTS = [
    TaskRequest("chat", Generate((1, 2), 9, Sampling(0.5, seed=3), ("stop",)), "m", 2.5),
    TaskRequest("embed", Embed((5,)), "v", 1.0, 3.0, 4.0, "key", {"batch": "Ä"}),
    TaskRequest("chat", Forward("chat/completions", b'{"a": 1}', 7, None, 10), "up"),
    TaskRequest(
        "rerank",
        Evaluate((Row(b"\1\0\0\0", 1, 3), Row(b"")), {"top": 2}, {"a": None}, (), (0, 0)),
        "r",
    ),
    TaskRequest("sum", Call({"large": [2**70, -(2**90)], "n": {"x": "half \ud800"}})),
    TaskRequest(
        "infer",
        Evaluate(tensors=(Tensor("x", "FP32", (1, 2), b"\0" * 8),), images=(b"\xff\0",)),
        "t",
    ),
    TaskRequest("translate", Generate((1, 2), 9, prefix=(0, 7)), "m"),
    TaskRequest("transcribe", Transcribe(b"\xff\0", 1.5, "en", True, True, (3,), 0.5, 7), "e"),
    TaskRequest("sum", Call({"numbers": [1, 2.5, None], "text": "ü"}), attended=True),
]
RESULTS: list[Result | TaskError] = [
    Generated("hi", (1, 2), 3, "stop", (TokenLogprob(1, -0.5, ((2, -1.0),)),)),
    Embedded(b"\0\1\2\3", 4),
    Forwarded({"message": {"content": "x"}}, {"prompt_tokens": 3}),
    Evaluated({"results": [{"index": 0, "score": 0.5}]}, 7),
    Returned({"large": 2**70}),
    Returned([1, {"a": None}]),
    TaskError("code", "why"),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r.payload).__name__)
def test_a_request_comes_back_as_it_was(request_: TaskRequest) -> None:
    assert decode_request(encode_request(request_)) == request_


def test_what_is_usual_of_a_request_takes_no_room_and_is_read_where_it_was_written_down() -> None:
    usual = TaskRequest("sum", Call({"a": 1}))
    written = (None, 1.0, None, None, None, {}, False)
    short = ["sum", "call", {"arguments": {"a": 1}}]
    assert encode_request(usual) == bytes([SCHEMA]) + msgspec.msgpack.encode(short)
    in_full = bytes([SCHEMA]) + msgspec.msgpack.encode([*short, *written])
    assert decode_request(in_full) == usual
    heavy = TaskRequest("sum", Call({"a": 1}), weight=4.0, labels={"a": "b"})
    assert decode_request(encode_request(heavy, weighed=False), 4.0) == heavy
    assert decode_request(encode_request(heavy), 9.0).weight == 9.0


@given(st.text(), st.none() | st.text(min_size=1), st.floats(0, 1e9), st.text(min_size=1))
def test_what_is_shown_of_a_task_comes_back_as_it_was(
    kind: str, model: str | None, load: float, group: str
) -> None:
    kind = kind.replace("\t", "") or group
    model = model and (model.replace("\t", "").replace("=", "-") or None)
    for its_kind, its_model in ((kind, model), (group, model), (kind, group), (group, None)):
        if "\t" in group and its_model == group:
            continue
        shown = books.shown_of(its_kind, its_model, load, group)
        seen_kind, seen_model, seen_load = books.seen_of(shown, group)
        assert (seen_kind, seen_model) == (its_kind, its_model)
        assert seen_load == pytest.approx(load, rel=1e-3)


@pytest.mark.parametrize("result", RESULTS, ids=lambda r: type(r).__name__)
def test_a_result_comes_back_as_it_was(result: Result | TaskError) -> None:
    assert decode_result(encode_result(result)) == result


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "nothing in it"),
        (bytes([SCHEMA + 1]) + b"\x80", "a newer worker wrote it"),
        (b"\0\x80", "nobody ever wrote"),
        (b"\x80\x04pickle", "nobody ever wrote|newer"),
        (bytes([SCHEMA]) + b"\xc1", "damaged"),
        (bytes([SCHEMA]) + b"\x80", "damaged"),
        (
            encode_request(REQUESTS[-1]).replace(b"\xa4call", b"\xa4cell"),
            "sort 'cell', which this version doesn't know",
        ),
    ],
)
def test_what_cant_be_read_tells_why(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        decode_request(data)


@given(st.binary(max_size=60))
def test_no_bytes_do_more_than_being_unreadable(data: bytes) -> None:
    for read in (decode_request, decode_result):
        try:
            read(bytes([SCHEMA]) + data)
        except Unreadable:
            continue
