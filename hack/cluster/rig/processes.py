"""Starting processes so that they can be found and ended with certainty.

Every process carries its cluster's state folder and its role in its environment. /proc is then
the only record: it knows the members of a cluster whose `up` was killed, and never a reused pid.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rig.errors import RigError

CLUSTER = "LLMTASKPOOL_RIG_MEMBER"
ROLE = "LLMTASKPOOL_RIG_ROLE"
WRAPPERS = frozenset({"unshare", "nsenter", "setpriv"})  # they only wait for what they started
END_WITHIN = 10.0


@dataclass(frozen=True, slots=True)
class Member:
    """One living process of a cluster. `resident` is in bytes."""

    pid: int
    role: str
    program: str
    state: str
    resident: int


def members(state: Path) -> list[Member]:
    """Every living process of the cluster in `state`, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            member = _member(entry, state)
            if member is not None:
                found.append(member)
    return sorted(found, key=lambda member: member.pid)


def _member(entry: Path, state: Path) -> Member | None:
    try:
        environment = (entry / "environ").read_bytes().split(b"\0")
        if f"{CLUSTER}={state}".encode() not in environment:
            return None
        prefix = f"{ROLE}=".encode()
        role = next(line for line in environment if line.startswith(prefix))
        status = (entry / "status").read_text()
    except (OSError, StopIteration):
        return None  # ended meanwhile, or another user's
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return Member(
        pid=int(entry.name),
        role=role.removeprefix(prefix).decode(),
        program=fields["Name"].strip(),
        state=fields["State"].split()[0],
        resident=int(fields.get("VmRSS", "0 kB").split()[0]) * 1024,
    )


def send(state: Path, role: str, number: signal.Signals) -> int:
    """Send a signal to every process of one role; says how many got it."""
    reached = 0
    for member in members(state):
        if member.role == role:
            reached += _signal(member.pid, number)
    return reached


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def end(state: Path) -> None:
    """SIGKILL every member until none is left: their folder is thrown away, so none need say bye.

    Raises RigError when one outlives SIGKILL.
    """
    deadline = time.monotonic() + END_WITHIN
    killed: set[int] = set()
    while left := members(state):
        for member in left:
            _signal(member.pid, signal.SIGKILL)
            killed.add(member.pid)
        _wait_or_raise(deadline, [f"{member.role} ({member.pid})" for member in left])
    # One that is on its way out has no environment any more, and yet holds its namespaces.
    while leaving := [str(pid) for pid in killed if _is_leaving(pid)]:
        _wait_or_raise(deadline, leaving)


def _is_leaving(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _wait_or_raise(deadline: float, names: Sequence[str]) -> None:
    if time.monotonic() > deadline:
        raise RigError(
            f"still alive after SIGKILL: {', '.join(names)}", "look at their /proc/PID/stack"
        )
    time.sleep(0.02)


class Processes:
    """The processes that this Python started for one cluster, by role."""

    def __init__(self, state: Path, *, die_with_parent: bool, enter: Sequence[str] = ()) -> None:
        self.state = state
        self.enter = tuple(enter)
        self._prefix = ("setpriv", "--pdeathsig", "KILL", "--") if die_with_parent else ()
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, role: str) -> Path:
        """The file that a role's output goes to, appended over restarts."""
        return self.state / "log" / f"{role}.log"

    def launch(
        self, role: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one process in a session of its own."""
        self.log(role).parent.mkdir(parents=True, exist_ok=True)
        marks = {CLUSTER: str(self.state), ROLE: role}
        with self.log(role).open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 (our own binaries, built from pinned sources)
                [*self._prefix, *self.enter, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {}), **marks},
                start_new_session=True,
            )
        self._started[role] = process
        return process

    def check(self, role: str) -> None:
        """Raise a RigError with the end of its log when a process has ended by itself."""
        process = self._started.get(role)
        if process is None or process.poll() is None:
            return
        raise RigError(
            f"{role} ended with {process.returncode}:\n{self.last_words(role)}",
            "the lines above are the end of its log",
        )

    def last_words(self, role: str) -> str:
        """The last lines of a role's log."""
        text = self.log(role).read_text(errors="replace") if self.log(role).exists() else ""
        return "\n".join(f"  {line[:300]}" for line in text.splitlines()[-8:])

    def kill(self, role: str) -> None:
        """SIGKILL one role and wait until it is gone."""
        deadline = time.monotonic() + END_WITHIN
        while send(self.state, role, signal.SIGKILL):
            if time.monotonic() > deadline:
                raise RigError(f"{role} is alive after SIGKILL", "look at its /proc/PID/stack")
            time.sleep(0.02)
        if role in self._started:
            self._started.pop(role).wait(END_WITHIN)

    def end(self) -> None:
        """SIGKILL everything and reap what this Python started."""
        end(self.state)
        for process in self._started.values():
            process.wait(END_WITHIN)
        self._started.clear()
