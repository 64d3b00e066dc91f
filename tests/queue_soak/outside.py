"""A run with real processes: workers and the server are killed, stopped and started again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import redis
from fakes.queue_servers import QueueServer

from queue_soak.audit import audit
from queue_soak.history import Event, Log, read, summary
from queue_soak.load import ATTEMPTS, Mix
from queue_soak.power import Power
from queue_soak.process import POOL, Role

MIX = Mix(poisonous=0.002)
TESTS = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Breaking:
    """How often what breaks, in seconds; a stopped worker sleeps for `stop_leases` leases.

    One that is cut off from the server works on for `cut_off_leases`; what it says arrives then.
    """

    seconds: float = 9.0
    tasks_per_second: float = 120.0
    workers: int = 4
    lease: float = 1.0
    kill_every: float = 1.5
    stop_every: float = 2.5
    stop_leases: float = 3.0
    server_every: float = 2.0
    cut_off_every: float = 1e9
    cut_off_leases: float = 5.0
    cut: bool = False
    kind: str = "valkey"
    fsync: str = "always"
    clocks: tuple[float, ...] = (0.0, 3600.0, -3600.0)
    versions: tuple[int, ...] = (1,)
    mix: Mix = MIX


@dataclass(frozen=True, slots=True)
class Born:
    """A process of the nursery, which lets it go when it ends."""

    pid: int

    def runs(self) -> bool:
        return Path(f"/proc/{self.pid}").exists()

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


@dataclass(slots=True)
class Soak:
    folder: Path
    plan: Breaking
    seed: int = 1
    counts: Counter[str] = field(default_factory=Counter)
    workers: dict[str, Born] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    stopped: dict[str, float] = field(default_factory=dict)
    born: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    nursery: subprocess.Popen[bytes] | None = None
    server: QueueServer = field(init=False)
    power: Power = field(init=False)
    log: Log = field(init=False)

    def go(self) -> list[Event]:
        plan = self.plan
        self.rng = random.Random(self.seed)
        self.logs.mkdir(parents=True)
        self.log = Log(self.logs, "main")
        self.log("config", attempts=ATTEMPTS, lease=plan.lease, loads=None)
        self.server = QueueServer(self.folder / "server", plan.kind, appendfsync=plan.fsync)
        self.power = Power(self.server, cut=plan.cut)
        env = {**os.environ, "PYTHONPATH": str(TESTS)}
        self.nursery = subprocess.Popen(
            [sys.executable, "-m", "queue_soak.process"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            with self.server:
                for _ in range(plan.workers):
                    self._bear()
                clients = [self._client(number) for number in range(2)]
                self._break(clients)
                self._settle()
                self._end()
                dead = list(audit(self.server, POOL, self.log))
        finally:
            self._end()
            self.nursery.communicate(timeout=10)
            self.log.close()
        history = read(self.logs)
        there = {e["id"] for e in history if e["e"] == "final"}
        accepted = {e["id"] for e in history if e["e"] == "accept" and e["out"] == "ok"}
        self.counts["accepted"] = len(accepted)
        self.counts["accepted and gone"] = len(accepted - there)
        self.counts["dead letters"] = len(dead)
        self.counts["committed"] = summary(history).get("commit ok", 0)
        return history

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def _process(self, role: Role) -> Born:
        assert self.nursery is not None
        assert self.nursery.stdin is not None
        assert self.nursery.stdout is not None
        self.nursery.stdin.write(msgspec.json.encode(role) + b"\n")
        self.nursery.stdin.flush()
        return Born(int(self.nursery.stdout.readline()))

    def _bear(self, version: int | None = None) -> None:
        """A new worker; in the place of one that ended it is of its version."""
        self.born += 1
        self.counts["workers started"] += 1
        plan, name = self.plan, f"w{self.born}"
        clock = plan.clocks[self.born % len(plan.clocks)]
        if version is None:
            version = plan.versions[self.born % len(plan.versions)]
        self.versions[name] = version
        role = Role("worker", name, self.server.url, str(self.logs), plan.lease)
        role.clock_ahead, role.version = clock, version
        role.cut_off_leases = plan.cut_off_leases if plan.cut_off_every < plan.seconds else 0.0
        self.workers[name] = self._process(role)

    def _client(self, number: int) -> Born:
        plan = self.plan
        role = Role("client", f"c{number}", self.server.url, str(self.logs), plan.lease)
        role.seed, role.mix = self.seed * 7 + number, plan.mix
        role.clock_ahead = plan.clocks[number % len(plan.clocks)]
        role.version = plan.versions[number % len(plan.versions)]
        role.rate = plan.tasks_per_second / 2
        role.tasks = int(role.rate * plan.seconds)
        return self._process(role)

    def _break(self, clients: list[Born]) -> None:
        plan, began = self.plan, time.monotonic()
        turns = {
            self._kill_worker: plan.kill_every,
            self._stop_worker: plan.stop_every,
            self._kill_server: plan.server_every,
            self._cut_worker_off: plan.cut_off_every,
        }
        due = {turn: began + 1.0 + every for turn, every in turns.items()}
        while any(client.runs() for client in clients):
            if time.monotonic() > began + plan.seconds + 60:
                raise TimeoutError("the clients don't come to an end")
            time.sleep(0.02)
            self._look_after_workers()
            self.power.look()
            for turn, at in due.items():
                if time.monotonic() >= at and time.monotonic() < began + plan.seconds:
                    due[turn] += turns[turn]
                    turn()
        done = {e["by"] for e in read(self.logs) if e["e"] == "done"}
        assert done == {"c0", "c1"}, f"of the clients only {done} came to their end"

    def _look_after_workers(self, *, all_go_on: bool = False) -> None:
        for name, until in list(self.stopped.items()):
            if all_go_on or time.monotonic() >= until:
                del self.stopped[name]
                if name in self.workers:
                    self.workers[name].signal(signal.SIGCONT)
        for name, process in list(self.workers.items()):
            if not process.runs():  # by us, or by a poisonous task
                self.log("crash", what="worker", by=name)
                del self.workers[name]
                self._bear(self.versions[name])

    def _kill_worker(self) -> None:
        self.counts["workers killed"] += 1
        self.workers[self.rng.choice(list(self.workers))].signal(signal.SIGKILL)

    def _stop_worker(self) -> None:
        self.counts["workers stopped"] += 1
        name = self.rng.choice(list(self.workers))
        self.workers[name].signal(signal.SIGSTOP)
        self.stopped[name] = time.monotonic() + self.plan.stop_leases * self.plan.lease

    def _cut_worker_off(self) -> None:
        self.counts["workers cut off"] += 1
        self.workers[self.rng.choice(list(self.workers))].signal(signal.SIGUSR1)

    def _kill_server(self) -> None:
        """By SIGKILL; with `cut` as by a power loss: its file loses what its last second wrote."""
        died, since, bytes_cut = self.power.take()
        self.counts["servers killed"] += 1
        self.counts["bytes cut"] += bytes_cut
        self.log("crash", t=died, what="server", since=since)
        time.sleep(0.1)
        self.server.start()

    def _settle(self) -> None:
        give_up, quiet_since = time.monotonic() + 240, None  # on a busy machine much waits still
        prefix = f"ltp:{{{POOL}}}"
        self._look_after_workers(all_go_on=True)
        with self.server.client() as client:
            while time.monotonic() < give_up:
                time.sleep(0.05)
                self._look_after_workers()
                try:
                    held = int(client.hget(f"{prefix}:s", "held:io") or 0)
                    left = held + client.zcount(f"{prefix}:l", "-inf", "(inf")
                except redis.RedisError:
                    continue
                if left:
                    quiet_since = None
                elif quiet_since is None:
                    quiet_since = time.monotonic()
                elif time.monotonic() - quiet_since > self.plan.lease:
                    return

    def _end(self) -> None:
        workers, self.workers = self.workers, {}
        for process in workers.values():
            process.signal(signal.SIGKILL)
        while any(process.runs() for process in workers.values()):
            time.sleep(0.01)

    def told(self) -> str:
        return ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))
