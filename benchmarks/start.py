"""How long `llmtaskpool local` takes from its start to the first token of a chat, cache warm.

    python benchmarks/start.py [--rounds 5] [--output json]

Every round starts the command anew, as a user does, waits for its port, sends one streamed chat
(which is held until the worker is ready) and stops it. The first start of all, which converts the
weights, is made before the rounds and not counted. The processor seconds of all its processes, from
start to end, tell a slow machine from a busy one.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from statistics import median

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table

LIMIT_SECONDS = 20.0
DEADLINE_SECONDS = 600.0
STOP_SECONDS = 30.0
ASKED = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 4,
    "stream": True,
}


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of the command; ``processor``: of all its processes, to their end."""

    listening: float
    first_token: float
    processor: float


def start_once() -> Start:
    """Start the pool, get one token, stop the pool."""
    began, used = time.perf_counter(), _processor_seconds()
    command = [sys.executable, "-m", "llmtaskpool_operator", "local"]
    pool = subprocess.Popen(
        [*command, "--port", "0", "--output", "json"], stdout=subprocess.PIPE, text=True
    )
    try:
        url = _url(pool)
        listening = time.perf_counter() - began
        _first_token(url, began)
        first_token = time.perf_counter() - began
    finally:
        pool.send_signal(signal.SIGINT)
        try:
            code = pool.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pool.kill()
            raise
    assert code == 0, f"llmtaskpool local ended with code {code}"
    return Start(listening, first_token, _processor_seconds() - used)


def _processor_seconds() -> float:
    """Of the processes that were started from here and have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _url(pool: subprocess.Popen[str]) -> str:
    assert pool.stdout is not None
    for line in pool.stdout:
        event = json.loads(line)
        if event["event"] == "listening":
            return str(event["url"])
    raise AssertionError("llmtaskpool local ended before it listened")


def _first_token(url: str, began: float) -> None:
    """Return at the first token. A start longer than the front holds a request is answered 503."""
    with httpx.Client(base_url=url, timeout=DEADLINE_SECONDS, trust_env=False) as http:
        while True:
            with http.stream("POST", "/v1/chat/completions", json=ASKED) as answer:
                if answer.status_code == 503:
                    assert time.perf_counter() - began < DEADLINE_SECONDS, "no worker got ready"
                    time.sleep(0.05)
                    continue
                assert answer.status_code == 200, answer.read()
                for line in answer.iter_lines():
                    if line.startswith("data: {") and _has_text(json.loads(line[6:])):
                        return
            raise AssertionError("the stream ended without a token")


def _has_text(chunk: dict) -> bool:
    return any(choice["delta"].get("content") for choice in chunk["choices"])


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--output", choices=("table", "json"), default="table")
    options = asked.parse_args()
    console = Console(stderr=True)
    start_once()
    rounds = [
        start_once()
        for _ in track(range(options.rounds), "starting", console=console, transient=True)
    ]
    tokens = [one.first_token for one in rounds]
    if options.output == "json":
        print(json.dumps({"median": median(tokens), "rounds": [asdict(one) for one in rounds]}))
        return
    table = Table(title="llmtaskpool local, from start to ..., in seconds")
    for heading in ("round", "listening", "first token", "processor"):
        table.add_column(heading, justify="right")
    for number, one in enumerate(rounds, 1):
        table.add_row(
            str(number), f"{one.listening:.1f}", f"{one.first_token:.1f}", f"{one.processor:.1f}"
        )
    Console().print(table)
    verdict = "within" if max(tokens) <= LIMIT_SECONDS else "OVER"
    print(f"first token: median {median(tokens):.1f} s, slowest {max(tokens):.1f} s "
          f"({verdict} {LIMIT_SECONDS:g} s)")  # fmt: skip


if __name__ == "__main__":
    main()
