"""Servers that a pool may stand in front of, by the names that tests are called by.

`vllm` is a real one, as `python hack/vllm install` puts it on a machine: tests with it have the
mark of that name, and run when it is asked for (`pytest -m vllm`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fakes.llama_server import llama_serving
from fakes.plain_http import NO_TLS
from fakes.vllm_stub import VllmStub, stub_serving

ROOT = Path(__file__).parents[2]
LOAD_SECONDS = 600

UPSTREAMS = (
    "vllm stub",
    pytest.param("llama.cpp", marks=pytest.mark.model),
    pytest.param("vllm", marks=pytest.mark.vllm),
)


@contextmanager
def upstream_serving(name: str, *, slots: int = 8, context: int = 4096) -> Iterator[str]:
    """Its address, until the block's end. ``context``: tokens of one request."""
    if name == "vllm stub":
        with stub_serving(VllmStub(seats=slots)) as stub:
            yield stub.url
    elif name == "llama.cpp":
        with llama_serving(slots=slots, context=slots * context) as server:
            yield server.url
    else:
        with _vllm_serving(slots, context) as url:
            yield url


@contextmanager
def _vllm_serving(slots: int, context: int) -> Iterator[str]:
    options = ["--slots", str(slots), "--context", str(context)]
    started = subprocess.Popen(
        [sys.executable, str(ROOT / "hack" / "vllm"), "serve", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        url: str = json.loads(started.stdout.readline())["url"]
        until = time.monotonic() + LOAD_SECONDS
        while not _answers(url):
            assert started.poll() is None, "vLLM ended while it loaded: see what it wrote"
            assert time.monotonic() < until, "vLLM did not load in time"
            time.sleep(1)
        yield url
    finally:
        started.terminate()
        started.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/models", timeout=5, verify=NO_TLS).is_success
    except httpx.TransportError:
        return False
