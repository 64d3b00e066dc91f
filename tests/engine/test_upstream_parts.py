"""The parts of a server's engine that are pure: addresses, event streams, gauges, pace, words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_worker.engines.model_option import parse_model
from llmtaskpool_worker.engines.protocol import Gauges, RequestFailed, TurnedAway
from llmtaskpool_worker.engines.upstream.address import address_of, check_host
from llmtaskpool_worker.engines.upstream.event_stream import EventReader, TooLong
from llmtaskpool_worker.engines.upstream.gauges import gauges_in
from llmtaskpool_worker.engines.upstream.pace import SAMPLE_TOKENS, Pace
from llmtaskpool_worker.engines.upstream.refusals import refusal, told_in_stream


def test_an_address_has_its_parts():
    address = address_of("openai:http://127.0.0.1:8001/v1/#meta/llama#3")
    assert address.url == "http://127.0.0.1:8001/v1"
    assert (address.root, address.model) == ("http://127.0.0.1:8001", "meta/llama#3")
    assert address_of("openai:https://vllm/v1").port == 443


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("m=openai:127.0.0.1:8001", "no http:// address"),
        ("m=openai:ftp://127.0.0.1/v1", "no http:// address"),
        ("m=openai:http://", "no http:// address"),
        ("m=openai:http://127.0.0.1:99999/v1", "is no address"),
        ("m=openai:http://me:secret@127.0.0.1/v1", "api_key_env"),
        ("m=openai:http://127.0.0.1/v1?a=b", "has a query"),
        ("m=openai:http://127.0.0.1/v1,dtype=float32", "option 'dtype' is none"),
        ("m=openai:http://127.0.0.1/v1,max_threads=0", "max_threads is 0"),
        ("m=openai:http://127.0.0.1/v1,tokenizer=5", "tokenizer is 5"),
    ],
)
def test_a_bad_server_is_refused_with_the_remedy_and_no_secret(text, words):
    with pytest.raises(ValueError, match="model m: ") as raised:
        parse_model(text)
    assert words in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("host", "allowed", "may"),
    [
        ("127.0.0.1:8001", (), True),
        ("127.8.8.8", (), True),
        ("[::1]:8001", (), True),
        ("localhost:1", (), True),
        ("vllm:8000", (), True),
        ("vllm.other.svc.cluster.local", (), False),
        ("api.openai.com", (), False),
        ("10.0.0.5", (), False),
        ("169.254.169.254", (), False),
        ("192.168.1.1:80", (), False),
        ("api.openai.com", ("api.openai.com",), True),
        ("api.openai.com:444", ("api.openai.com:443",), False),
    ],
)
def test_requests_go_to_this_machine_and_the_own_namespace_unless_allowed(host, allowed, may):
    address = address_of(f"openai:http://{host}/v1")
    if may:
        check_host(address, allowed)
    else:
        with pytest.raises(ValueError, match="LLMTASKPOOL_UPSTREAM_HOSTS"):
            check_host(address, allowed)


EVENTS = [b'{"a": 1}', b"two\nlines", b"[DONE]", "\N{SNOWMAN}".encode()]


@given(st.lists(st.integers(1, 200), max_size=40), st.sampled_from([b"\n", b"\r\n"]))
def test_events_are_the_same_however_they_are_cut(cuts, end):
    whole = b""
    for one in EVENTS:
        lines = [b"data: " + line for line in one.split(b"\n")]
        whole += b": comment" + end + end.join(lines) + end + b"id: 5" + end + end
    reader, found, start = EventReader(), [], 0
    for cut in (*cuts, len(whole)):
        found += reader.feed(whole[start : start + cut])
        start += cut
    assert found == EVENTS


@pytest.mark.parametrize("last", [b"data: " + b"x" * 200, b"data: " + b"x" * 60 + b"\n"])
def test_an_event_that_is_too_long_is_not_kept(last):
    reader = EventReader(most=100)
    assert reader.feed(b"data: " + b"x" * 60 + b"\n") == []
    with pytest.raises(TooLong):
        reader.feed(last)


VLLM = """# HELP vllm:num_requests_running Number of requests
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b}"} 3.0
vllm:num_requests_running{engine="1",model_name="a"} 4.0
vllm:num_requests_waiting{engine="0",model_name="a"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="a"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="a"} 0.75
vllm:num_preemptions_total{engine="0",model_name="a"} 1.5e+01
"""


@pytest.mark.parametrize(
    ("page", "told"),
    [
        (VLLM, Gauges(7.0, 2.0, 0.75, 15.0)),
        ("sglang:num_running_reqs 3\nsglang:num_queue_reqs 1\n", Gauges(3.0, 1.0)),
        ("llamacpp:requests_processing 2\nllamacpp:requests_deferred 9\n", Gauges(2.0, 9.0)),
        ("vllm:num_requests_running NaN\nvllm:num_requests_waiting -1\n", None),
        ("<html>not found</html>", None),
        ("", None),
    ],
)
def test_a_metrics_page_is_read_by_the_names_of_its_server(page, told):
    assert gauges_in(page) == told


def test_a_sample_is_the_mean_gap_of_the_streams_that_draw():
    pace, samples = Pace(), []
    for step in range(2 * SAMPLE_TOKENS + 1):
        samples += [pace.drew(stream, 1, 10.0 + 0.02 * step) for stream in (1, 2, 3)]
    told = [one for one in samples if one is not None]
    assert len(told) == 6
    assert {one.streams for one in told} == {3}
    assert [one.seconds for one in told] == pytest.approx([0.02] * 6)
    pace.left(2)
    pace.left(2)
    for step in range(SAMPLE_TOKENS):
        last = pace.drew(1, 1, 20.0 + step)
    assert last is not None
    assert last.streams == 2


def test_several_tokens_in_a_chunk_are_as_many_steps():
    pace = Pace()
    assert pace.drew(1, 4, 0.0) is None
    assert pace.drew(1, 4, 0.4) is None
    assert pace.drew(1, 4, 0.8).seconds == pytest.approx(0.1)


def body(message: object) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()


@pytest.mark.parametrize(
    ("status", "said", "code", "words"),
    [
        (400, body("top_p must be in (0, 1]"), "upstream_rejected", "top_p must be in (0, 1]"),
        (422, b'{"message": "odd"}', "upstream_rejected", "422: odd"),
        (400, body("maximum context length is 10"), "context_length_exceeded", "length is 10"),
        (401, b"", "upstream_unauthorized", "api_key_env"),
        (404, body("no such model"), "upstream_failed", "no such model"),
        (500, b"<html>", "upstream_failed", "status 500"),
        (500, body(["a"]), "upstream_failed", "status 500"),
        (400, body("x" * 5000), "upstream_rejected", "xxx..."),
    ],
)
def test_a_refusal_is_told_with_the_upstream_named(status, said, code, words):
    failed = refusal(1, "chat", status, said, None)
    assert isinstance(failed, RequestFailed)
    assert (failed.code, words in failed.message) == (code, True)
    assert "the upstream of model chat" in failed.message
    assert len(failed.message) < 500


@pytest.mark.parametrize(
    "inside",
    [
        "Traceback (most recent call last)",
        "OSError: /root/.cache/huggingface is read-only",
        "assert failed in scheduler.py line 5",
        "[{'type': 'value_error', 'input': 'the whole prompt'}]",
        "segfault at 0x7f03e1a2b3c4",
    ],
)
def test_a_server_s_insides_are_not_passed_on(inside):
    for failed in (refusal(1, "chat", 400, body(inside), None), told_in_stream(1, "chat", inside)):
        assert isinstance(failed, RequestFailed)
        assert inside not in failed.message


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [(503, None, None), (429, "7", 7.0), (429, "Wed, 21 Oct 2026 07:28:00 GMT", None)],
)
def test_enough_is_no_failure(status, header, seconds):
    assert refusal(1, "chat", status, b"", header) == TurnedAway(1, seconds)
