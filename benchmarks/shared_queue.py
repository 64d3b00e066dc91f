"""The shared queue beside SAQ, arq, Celery and Dramatiq: four processes, a job that does nothing.

    python benchmarks/shared_queue.py               # all, into shared_queue.md: under 12 minutes
    python benchmarks/shared_queue.py --only ours-8 saq --repeat 5

All on one server of this machine. Workers start on an empty queue, run a few tasks, and are stopped
(SIGSTOP) while 10,000 tasks of 512 B are put in; then they go on. Measured is from when a tenth is
done until none is left, the time and the CPU of the server and of all worker processes: while they
stood still connections have run out of time, and each has to make its own anew. Peers run in
environments of their own, made by uv. With `always` the server has each write on disk before it
answers. What would begin too late for the time that there is (`--minutes`) is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from fakes.queue_servers import QueueServer  # noqa: E402

WORKERS = 4
GIVE_UP_SECONDS = 240.0
BEGUN = 0.1
"""From this share of the tasks on is measured."""
PAGE = HERE / "shared_queue.md"
BEGIN, END = "<!-- measured -->", "<!-- end of what is measured -->"


OURS = "ltp:{bench/pool}"


def _sum(*parts: Callable[[redis.Redis], int]) -> Callable[[redis.Redis], int]:
    return lambda client: sum(part(client) for part in parts)


def _acks(client: redis.Redis) -> int:
    return sum(client.scard(key) for key in client.scan_iter("dramatiq:__acks__.*"))


def _ours_left(client: redis.Redis) -> int:
    waiting = int(client.hget(f"{OURS}:s", "held:io") or 0)
    return waiting + client.zcount(f"{OURS}:l", "-inf", "(inf")


@dataclass(frozen=True, slots=True)
class Contestant:
    """``packages``: of its own environment; none: ours. ``left``: tasks that are not done.

    ``file``: the line lies in a file of one process, and no server has it.
    """

    name: str
    packages: tuple[str, ...]
    left: Callable[[redis.Redis], int]
    a_call: int = 0
    note: str = ""
    file: bool = False

    def command(self, what: str, url: str, *rest: object) -> list[str]:
        """Of a process that fills the queue or works."""
        if not self.packages:
            more = [str(self.a_call)] if what == "work" else []
            script = str(HERE / "shared_queue_ours.py")
            return [sys.executable, script, what, url, *map(str, rest), *more]
        python = environment(self.packages)
        return [python, str(HERE / "shared_queue_peers.py"), self.name, what, url, *map(str, rest)]


CONTESTANTS = (
    Contestant(
        "ours-8",
        (),
        _ours_left,
        8,
        "claims of 8: priority, lease, fence, result kept",
    ),
    Contestant(
        "saq",
        ("saq[redis]==0.26.4", "hiredis", "typing_extensions"),
        lambda c: c.zcard("saq:default:incomplete"),
        note="FIFO, result kept",
    ),
    Contestant(
        "ours-1",
        (),
        _ours_left,
        1,
        "one task a claim: the same promises",
    ),
    Contestant(
        "sqlite-8", (), lambda _: 0, 8, "a file of one process, each step synced to disk", file=True
    ),
    Contestant("sqlite-1", (), lambda _: 0, 1, "the same, one task a claim", file=True),
    Contestant(
        "arq", ("arq==0.28.0",), lambda c: c.zcard("arq:queue"), note="by time, result kept"
    ),
    Contestant(
        "celery",
        ("celery[redis]==5.7.0", "hiredis"),
        _sum(lambda c: c.llen("celery"), lambda c: c.hlen("unacked")),
        note="prefork, no results",
    ),
    Contestant(
        "dramatiq",
        ("dramatiq[redis]==2.2.1", "hiredis"),
        _sum(lambda c: c.llen("dramatiq:default"), _acks),
        note="prefetch, no order, no results",
    ),
)


def environment(packages: tuple[str, ...]) -> str:
    """The Python of an environment with these, made once for each run of the benchmark."""
    if packages not in _environments:
        uv = shutil.which("uv") or str(HERE.parent / ".tools/bin/uv")
        folder = Path(tempfile.mkdtemp(prefix="queue-peer-"))
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
        python = str(folder / "bin/python")
        subprocess.run([uv, "pip", "install", "-q", "--python", python, *packages], check=True)
        _environments[packages] = python
    return _environments[packages]


_environments: dict[tuple[str, ...], str] = {}


@dataclass(slots=True)
class Measured:
    """Of one contestant in one repetition."""

    tasks_per_second: float
    server_us: float
    clients_us: float
    bytes_per_task: float

    @property
    def cpu_us(self) -> float:
        """Of server and clients, for each task."""
        return self.server_us + self.clients_us


@dataclass(slots=True)
class Workers:
    """Worker processes with all that they fork."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def all(self) -> list[psutil.Process]:
        """Parents and children."""
        parents = [psutil.Process(process.pid) for process in self.processes]
        return [p for parent in parents for p in (parent, *parent.children(recursive=True))]

    def cpu_seconds(self) -> float:
        """Of all of them."""
        return sum(sum(p.cpu_times()[:2]) for p in self.all())

    def signal(self, number: int) -> None:
        """To all of them."""
        for process in self.all():
            process.send_signal(number)

    def end(self) -> None:
        """All of them, at once."""
        everybody = self.all()
        for process in everybody:
            process.kill()
        psutil.wait_procs(everybody)
        for one in self.processes:
            one.wait()


def run_on_file(contestant: Contestant, a: argparse.Namespace, folder: Path) -> Measured:
    """One repetition of the broker of a file; what a waiting task takes there isn't asked."""
    folder.mkdir()
    command = [sys.executable, str(HERE / "shared_queue_ours.py"), "file", str(folder / "queue.db")]
    command += [str(number) for number in (a.tasks, a.body, contestant.a_call)]
    rate, cpu = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return Measured(rate, 0.0, 1e6 * cpu, 0.0)


def run(contestant: Contestant, a: argparse.Namespace, folder: Path) -> Measured:
    """One repetition of one contestant, on a new server."""
    if contestant.file:
        return run_on_file(contestant, a, folder)
    options = {"appendfsync": a.fsync}
    with QueueServer(folder, a.server, **options) as server, server.client() as client:
        workers = Workers()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        env = {**os.environ, "PYTHONPATH": str(HERE)}
        try:
            for number in range(WORKERS):
                command = contestant.command("work", server.url, number)
                workers.processes.append(subprocess.Popen(command, env=env, **quiet))

            def fill(tasks: int) -> None:
                command = contestant.command("fill", server.url, tasks, a.body)
                subprocess.run(command, env=env, check=True, **quiet)

            def come_to(most: int) -> int:
                """Wait until at most so many are left; answers how many are."""
                began = time.perf_counter()
                while (left := contestant.left(client)) > most:
                    if time.perf_counter() - began > GIVE_UP_SECONDS:
                        raise TimeoutError(f"{contestant.name} doesn't come to an end")
                    time.sleep(0.005)
                return left

            def spent() -> tuple[float, float, float]:
                """Seconds until now: of time, of the server's CPU and of the workers'."""
                return time.perf_counter(), server.cpu_seconds(), workers.cpu_seconds()

            time.sleep(2)
            fill(WORKERS * 25)
            come_to(0)
            time.sleep(1)
            workers.signal(signal.SIGSTOP)
            empty = server.used_memory()
            fill(a.tasks)
            held = server.used_memory() - empty
            workers.signal(signal.SIGCONT)
            tasks = come_to(round((1 - BEGUN) * a.tasks))
            before = spent()
            come_to(0)
            took, of_server, of_clients = (
                now - then for then, now in zip(before, spent(), strict=True)
            )
        finally:
            workers.end()
    return Measured(tasks / took, 1e6 * of_server / tasks, 1e6 * of_clients / tasks, held / a.tasks)


def enqueue(a: argparse.Namespace, where: str, folder: Path) -> str:
    """p50 and p99 of 2,000 enqueues of one client, one after the other, with all tasks waiting."""
    ours = CONTESTANTS[0]
    if where in ("memory", "sqlite"):
        place = "memory" if where == "memory" else str(folder / "queue.db")
        folder.mkdir()
        command = ours.command("enqueue-here", place, a.tasks, a.body)
        told = subprocess.run(command, check=True, capture_output=True).stdout
    else:
        with QueueServer(folder, a.server, appendfsync=where) as server:
            subprocess.run(ours.command("fill", server.url, a.tasks, a.body), check=True)
            command = ours.command("enqueue", server.url, 2000, a.body)
            told = subprocess.run(command, check=True, capture_output=True).stdout
    took = [1e3 * float(one) for one in json.loads(told)]
    return f"| {where} | {quantile(took, 0.5):.2f} | {quantile(took, 0.99):.2f} |"


def quantile(values: list[float], q: float) -> float:
    """The value below which a share q of them lies."""
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def table(rows: dict[str, list[Measured]]) -> str:
    """As Markdown. Ratios are within a repetition, the median of them."""

    def ratios(ours: str, other: list[Measured], of: Callable[[Measured], float]) -> str:
        if ours not in rows:
            return ""
        pairs = list(zip(rows[ours], other, strict=False))  # of one repetition
        return f"{statistics.median(of(mine) / of(its) for mine, its in pairs):.2f}"

    lines = [
        "| | tasks/s, each repetition | CPU µs a task: server + clients | bytes a waiting task "
        "| ours over it: tasks/s, 8 a call; 1 | its CPU over ours, 8 a call; 1 |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for contestant in CONTESTANTS:
        got = rows.get(contestant.name)
        if not got:
            continue
        rates = " / ".join(f"{m.tasks_per_second:,.0f}" for m in got)
        server = statistics.median(m.server_us for m in got)
        clients = statistics.median(m.clients_us for m in got)
        size = statistics.median(m.bytes_per_task for m in got)
        speed = [ratios(o, got, lambda m: m.tasks_per_second) for o in ("ours-8", "ours-1")]
        cost = [ratios(o, got, lambda m: 1 / m.cpu_us) for o in ("ours-8", "ours-1")]
        lines.append(
            f"| **{contestant.name}**: {contestant.note} | {rates} | {server:.0f} + {clients:.0f} "
            f"| {size:,.0f} | {'; '.join(speed)} | {'; '.join(cost)} |"
        )
    return "\n".join(lines)


def repeated(
    a: argparse.Namespace, names: Sequence[str], ends_at: float, folder: Path
) -> dict[str, list[Measured]]:
    """All of these in turn, as often as is asked for and there is time for."""
    rows: dict[str, list[Measured]] = {}
    lasted: dict[str, float] = {}
    for repetition in range(a.repeat):
        for contestant in CONTESTANTS:
            name = contestant.name
            began = time.monotonic()
            missed = repetition > 0 and len(rows.get(name, ())) < repetition
            if name not in names or missed or began + lasted.get(name, 0.0) > ends_at:
                continue
            got = run(contestant, a, folder / f"{a.server}-{a.fsync}-{name}-{repetition}")
            rows.setdefault(name, []).append(got)
            lasted[name] = time.monotonic() - began
            print(f"{a.server}, {a.fsync}, {name}: {got}", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """See the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    names = [contestant.name for contestant in CONTESTANTS]
    parser.add_argument("--only", nargs="*", choices=names, help="one table of these, to stdout")
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--body", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=11.0)
    parser.add_argument("--fsync", choices=["everysec", "always"], default="everysec")
    parser.add_argument("--server", choices=["valkey", "redis"], default="valkey")
    a = parser.parse_args()
    began, load_before = time.monotonic(), os.getloadavg()[0]
    ends_at = began + 60 * a.minutes
    with tempfile.TemporaryDirectory(prefix="queue-bench-") as temporary:
        folder = Path(temporary)
        if a.only:
            print(table(repeated(a, a.only, ends_at, folder)))
            return
        # What is short comes first, so that the slow ones get what time is left.
        a.fsync = "always"
        always = repeated(a, ["ours-8", "ours-1"], began + 12 * a.minutes, folder)
        took = [
            enqueue(a, where, folder / f"enqueue-{where}")
            for where in ("memory", "sqlite", "everysec", "always")
        ]
        a.fsync, a.server = "everysec", "redis"
        redis_too = repeated(a, ["ours-8", "saq"], began + 24 * a.minutes, folder)
        a.server = "valkey"
        everysec = repeated(a, names, ends_at, folder)
    minutes = (time.monotonic() - began) / 60
    said = f"{time.strftime('%d %b %Y', time.gmtime())}, {a.tasks:,} tasks of {a.body} B"
    load = f"load average {load_before:.1f} before and {os.getloadavg()[0]:.1f} after"
    measured = f"""{BEGIN}
{said}, {os.cpu_count()} cores, {load}, {minutes:.0f} minutes.

### Valkey 9, `everysec`

{table(everysec)}

### Redis 7.0 of Debian, `everysec`

{table(redis_too)}

### Valkey 9, `always`

{table(always)}

### One client that enqueues, {a.tasks:,} waiting

| | p50 ms | p99 ms |
| --- | ---: | ---: |
{chr(10).join(took)}
{END}"""
    print(measured)
    head, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(head + measured + rest.partition(END)[2])


if __name__ == "__main__":
    main()
