"""200 streams of one worker's process, and one of their clients reads nothing."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from contextlib import closing
from pathlib import Path

import psutil
from fakes.attacks import MIB, watched
from fakes.http_rig import request_bytes, wait_until
from fakes.talking_worker import TIMES
from fakes.worker_process import WorkerProcess, worker_process

STREAMS = 200
PROMPT = "abcdefghijklmnopqrst"
LONG = "x" * 5000
"""It is answered with eleven megabytes, and systems hold some four of them for a connection."""
TALKING = (sys.executable, "-m", "fakes.talking_worker", "serve")


def asked(prompt: str) -> bytes:
    body = {"model": "m", "prompt": prompt, "stream": True, "max_tokens": len(prompt)}
    return request_bytes("/v1/completions", body, headers="connection: close\r\n")


async def text_of(port: int) -> str:
    """What one stream says, from its beginning to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with closing(writer):
        writer.write(asked(PROMPT))
        said, done = [], False
        async for line in reader:
            if line == b"data: [DONE]\n":
                done = True
            elif line.startswith(b"data: "):
                (choice,) = json.loads(line[6:])["choices"]
                said.append(choice["text"])
        assert done, "it was cut off"
        return "".join(said)


async def all_texts(port: int) -> list[str]:
    return await asyncio.gather(*(text_of(port) for _ in range(STREAMS - 1)))


def silent_one(worker: WorkerProcess) -> socket.socket:
    """A client whose answer is more than its system and the worker's hold for it."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(60)
    made.connect(("127.0.0.1", worker.wait_for("listening")["data_port"]))
    made.sendall(asked(LONG))
    return made


def serves(worker: WorkerProcess, client: socket.socket) -> bool:
    """Whether the worker has its end of a connection."""
    (_, port) = client.getsockname()
    held = psutil.Process(worker.pid).net_connections("tcp")
    return any(one.raddr and one.raddr.port == port for one in held)


def read_to_the_end(made: socket.socket) -> bytes:
    found = bytearray()
    try:
        while block := made.recv(1 << 20):
            found += block
    except ConnectionError:
        pass  # cut off, which is the end as well
    return bytes(found)


def test_a_client_that_reads_nothing_holds_up_none_of_200_streams_and_is_cut_off(
    monkeypatch,
) -> None:
    folder = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]))
    options = ("--model", "m=nowhere", "--threads", str(STREAMS))
    with worker_process(*options, program=TALKING, unread_timeout_seconds="2") as worker:
        worker.wait_for("ready")
        port = worker.wait_for("listening")["data_port"]
        with watched(worker) as seen, closing(silent_one(worker)) as silent:
            assert silent.recv(1, socket.MSG_PEEK), "its answer has begun"
            texts = asyncio.run(asyncio.wait_for(all_texts(port), 120))
            wait_until(lambda: not serves(worker, silent), "the silent one is cut off")
            rest = read_to_the_end(silent)
        assert set(texts) == {"".join(letter * TIMES for letter in PROMPT)}
        assert seen.grown < 96 * MIB
        assert b"[DONE]" not in rest
        assert len(rest) < len(LONG) * TIMES, "it was cut off in the middle"
        assert set(seen.statuses) == {200}
