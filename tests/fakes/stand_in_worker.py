"""A worker without a model that speaks the real one's command line, lines and routes.

It starts in a tenth of a second, so the tests of supervision use it. ``STAND_IN_*`` variables
say how it behaves; a request says how long it takes: ``{"seconds": 0.3, "stream": true}``. A file
``odd.json`` in its folder spoils what it says of itself: ``{"lanes.compute.active": -3}``; null
leaves the field out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CAPACITY = 4  # requests of this worker that run at full speed: the unit of its work counters


def setting(name: str, default: float) -> float:
    return float(os.environ.get(f"STAND_IN_{name}", default))


def control_token() -> str:
    if file := os.environ.get("LLMTASKPOOL_CONTROL_TOKENS_FILE"):
        return Path(file).read_text().strip()
    return os.environ["LLMTASKPOOL_CONTROL_TOKENS"]


def is_stuck() -> bool:
    return Path(os.environ.get("STAND_IN_STUCK_FILE", "/nowhere")).exists()


def spoilt(state: dict) -> dict:
    """The state with what odd.json says in the places that it names."""
    file = Path("odd.json")
    for place, value in (json.loads(file.read_text()) if file.exists() else {}).items():
        *way, last = place.split(".")
        part = state
        for name in way:
            part = part[name]
        part[last] = value
        if value is None:
            del part[last]
    return state


class Lane:
    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.active = 0
        self.waiting: list[asyncio.Future] = []

    async def enter(self) -> None:
        if self.active < self.threads:
            self.active += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self.waiting:
                self.waiting.remove(turn)
            elif turn.done() and not turn.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        self.active -= 1
        self.wake()

    def wake(self) -> None:
        while self.waiting and self.active < self.threads:
            turn = self.waiting.pop(0)
            if not turn.done():
                self.active += 1
                turn.set_result(None)


class StandIn:
    def __init__(self, options: argparse.Namespace) -> None:
        self.id = options.worker_id
        self.lanes = {"compute": Lane(options.threads), "io": Lane(options.io_threads)}
        self.phase = "starting"
        self.generation = 0
        self.started_at = time.time()
        self.arrived = self.done = self.waiting_work = 0.0
        self.totals = dict.fromkeys(["accepted", "rejected", "succeeded", "cancelled"], 0)
        self.stopping = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self.connections: set[asyncio.Task] = set()

    def in_flight(self) -> int:
        return sum(lane.active + len(lane.waiting) for lane in self.lanes.values())

    def state(self) -> dict:
        if self.phase == "draining" and self.in_flight() == 0:
            self.phase = "drained"
        return {
            "schema_version": 1,
            "worker_id": self.id,
            "started_at": self.started_at,
            "observed_at": time.time(),
            "phase": self.phase,
            "threads_generation": self.generation,
            "lanes": {
                name: {
                    "threads": lane.threads,
                    "threads_cap": 64,
                    "active": lane.active,
                    "queued": len(lane.waiting),
                    "queue_limit": 1000,
                }
                for name, lane in self.lanes.items()
            },
            "work": {
                "arrived_seconds_total": self.arrived,
                "done_seconds_total": self.done,
                "waiting_seconds": max(0.0, self.waiting_work),
            },
            "totals": self.totals,
            "models": ["stand-in"],
        }

    async def control(self, method: str, path: str, headers: dict, body: dict):
        if headers.get("authorization") != f"Bearer {control_token()}":
            return 401, {"error": {"message": "no valid key"}}
        if (method, path) == ("GET", "/control/v1/state"):
            return 200, spoilt(self.state())
        if (method, path) == ("PUT", "/control/v1/threads"):
            if body["generation"] < self.generation:
                return 409, {"error": {"message": "stale generation"}}
            self.generation = body["generation"]
            for name, n in body["threads"].items():
                self.lanes[name].threads = n
                self.lanes[name].wake()
            threads = {name: lane.threads for name, lane in self.lanes.items()}
            return 200, {"generation": self.generation, "threads": threads}
        if (method, path) == ("POST", "/control/v1/drain"):
            self.phase = "draining"
            state = self.state()
            lanes = self.lanes.values()
            return 200, {
                "phase": state["phase"],
                "active": sum(lane.active for lane in lanes),
                "queued": sum(len(lane.waiting) for lane in lanes),
            }
        return 404, {"error": {"message": "no such route"}}

    async def data(self, path: str, body: dict, writer: asyncio.StreamWriter):
        if path == "/who":
            about = {"worker_id": self.id, "pid": os.getpid()}
            return 200, about | {"threads": self.lanes["compute"].threads}
        if path == "/livez":
            return (503 if is_stuck() else 200), {}
        if path == "/readyz":  # never behind the tasks that wait
            return (200 if self.phase == "ready" else 503), {}
        if path.startswith("/v1/tasks/"):
            return 200, {"worker_id": self.id}
        if path == "/crash":
            os._exit(7)
        if self.phase != "ready":
            self.totals["rejected"] += 1
            return 503, {"error": {"message": "draining", "code": "draining"}}
        seconds = float(body.get("seconds", 0.0))
        work = seconds / CAPACITY
        self.arrived += work
        self.waiting_work += work
        self.totals["accepted"] += 1
        lane = self.lanes["compute"]
        self.idle.clear()
        waiting = True
        try:
            await lane.enter()
            self.waiting_work -= work
            waiting = False
            try:
                if body.get("stream"):
                    await self.stream(seconds, int(body.get("parts", 10)), writer)
                    return None
                await asyncio.sleep(seconds)
            finally:
                lane.leave()
        except asyncio.CancelledError:
            self.totals["cancelled"] += 1
            raise
        finally:
            self.waiting_work -= work if waiting else 0.0
            if self.in_flight() == 0:
                self.idle.set()
        self.done += work
        self.totals["succeeded"] += 1
        return 200, {"worker_id": self.id, "echo": body}

    async def stream(self, seconds: float, parts: int, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for number in range(parts):
            line = f"data: {json.dumps({'n': number, 'worker_id': self.id})}\n\n".encode()
            writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            await writer.drain()
            await asyncio.sleep(seconds / parts)
        writer.write(b"0\r\n\r\n")

    def serve(self, *, is_control: bool):
        async def on_connection(reader, writer):
            task = asyncio.current_task()
            self.connections.add(task)
            try:
                while await self.exchange(reader, writer, is_control=is_control):
                    pass
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                self.connections.discard(task)
                writer.close()

        return on_connection

    async def exchange(self, reader, writer, *, is_control: bool) -> bool:
        line = await reader.readline()
        if not line:
            return False
        method, path, _ = line.decode().split(" ", 2)
        headers = {}
        while stripped := (await reader.readline()).strip():
            name, _, value = stripped.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        parsed = json.loads(body) if body else {}
        if is_control:
            answer = await self.control(method, path, headers, parsed)
        else:
            work = asyncio.create_task(self.data(path, parsed, writer))
            gone = asyncio.create_task(reader.read(1))
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():  # the client left
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                return False
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            answer = await work
        if answer is not None:
            status, value = answer
            data = json.dumps(value).encode()
            close = "connection: close\r\n" if status == 503 else ""
            writer.write(
                f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{close}"
                f"content-length: {len(data)}\r\n\r\n".encode()
                + data
            )
        await writer.drain()
        return True


def say(**line) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def run(options: argparse.Namespace) -> int:
    worker = StandIn(options)
    if setting("EXIT_AT_ONCE", 0):
        sys.stderr.write("stand-in: told to fail\n")
        return int(setting("EXIT_AT_ONCE", 0))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        if setting("IGNORE_SIGTERM", 0):
            loop.add_signal_handler(number, lambda: None)
        else:
            loop.add_signal_handler(number, worker.stopping.set)
    engine = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import sys; sys.stdin.read()", stdin=subprocess.PIPE
    )
    data = await asyncio.start_server(worker.serve(is_control=False), options.host, options.port)
    control = await asyncio.start_server(
        worker.serve(is_control=True), options.control_host, options.control_port
    )
    say(
        event="listening",
        data_port=data.sockets[0].getsockname()[1],
        control_port=control.sockets[0].getsockname()[1],
    )
    say(event="loading", stage="weights", fraction=0.5, model="stand-in")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(worker.stopping.wait(), setting("READY_SECONDS", 0.0))
    worker.phase = "ready"
    say(event="ready")
    await worker.stopping.wait()
    worker.phase = "draining"
    say(event="draining")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(worker.idle.wait(), options.grace_seconds)
    for connection in list(worker.connections):
        connection.cancel()
    engine.stdin.close()
    await engine.wait()
    say(event="stopped")
    return 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--control-host", default="127.0.0.1")
    parser.add_argument("--control-port", type=int, default=8001)
    parser.add_argument("--worker-id", default=os.environ.get("LLMTASKPOOL_WORKER_ID", "worker"))
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--io-threads", type=int, default=8)
    parser.add_argument("--queue-limit", type=int, default=1000)
    parser.add_argument("--cache-dir")
    parser.add_argument("--grace-seconds", type=float, default=30.0)
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--die-with-parent", action="store_true")
    options = parser.parse_args()
    if options.die_with_parent:
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
    sys.exit(asyncio.run(run(options)))


if __name__ == "__main__":
    main()
