"""curl against the data port."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator

import pytest
from fakes.fake_pool import FakePool, wait_for_ever
from fakes.http_rig import KEY, serving, wait_until

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def curl(*arguments: str, body: object = None) -> list[str]:
    data = [] if body is None else ["--json", json.dumps(body)]
    return ["curl", "--silent", "--show-error", "--max-time", "20", *data, *arguments]


def run(*arguments: str, body: object = None) -> str:
    done = subprocess.run(
        curl(*arguments, body=body), capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout


@pytest.fixture
def ctrl_c_ends_programs() -> Iterator[None]:
    """Programs inherit an ignored SIGINT, as of a pytest that was started by `nohup … &`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_chat_with_a_key_in_a_header():
    with serving(api_keys=(KEY,)) as rig:
        key = ("-H", f"Authorization: Bearer {KEY}")
        answer = json.loads(run(*key, f"{rig.url}/v1/chat/completions", body=CHAT))
        assert answer["choices"][0]["message"]["content"] == "117 58 "
        status = run("-o", "/dev/null", "-w", "%{http_code}", f"{rig.url}/v1/models")
        assert status == "401"


def test_a_body_that_is_sent_in_chunks_after_100_continue():
    with serving() as rig:
        chunked = ("-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue")
        answer = json.loads(run(*chunked, f"{rig.url}/v1/chat/completions", body=CHAT))
        assert answer["usage"]["completion_tokens"] == 2


def test_a_stream_without_buffering():
    with serving() as rig:
        lines = run("-N", f"{rig.url}/v1/chat/completions", body=CHAT | {"stream": True})
        assert lines.rstrip().endswith("data: [DONE]")


@pytest.mark.usefixtures("ctrl_c_ends_programs")
def test_ctrl_c_in_a_stream_cancels_the_task():
    with serving(lambda clock: FakePool(clock, script=wait_for_ever)) as rig:
        asked = curl("-N", f"{rig.url}/v1/chat/completions", body=CHAT | {"stream": True})
        with subprocess.Popen(asked, stdout=subprocess.PIPE) as running:
            for line in running.stdout:
                if b"once" in line:
                    break
            assert rig.held() == 1
            running.send_signal(signal.SIGINT)
            running.wait(20)
        wait_until(lambda: rig.held() == 0, "the task was cancelled")


@pytest.mark.usefixtures("ctrl_c_ends_programs")
def test_ctrl_c_while_waiting_for_a_whole_answer_cancels_the_task():
    with serving(lambda clock: FakePool(clock, script=wait_for_ever)) as rig:
        asked = curl(f"{rig.url}/v1/chat/completions", body=CHAT)
        with subprocess.Popen(asked, stdout=subprocess.DEVNULL) as running:
            wait_until(lambda: rig.held() == 1, "the task runs")
            running.send_signal(signal.SIGINT)
            running.wait(20)
        wait_until(lambda: rig.held() == 0, "the task was cancelled")
