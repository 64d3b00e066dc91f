"""What the pods of a pool say of themselves, asked all at once and waited for only so long.

A pod that doesn't answer delays nobody: its last answer stays, and gets older.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from llmtaskpool_worker.contract import WorkerReport

from llmtaskpool_operator.workers.client import WorkerClient, WorkerUnreachable

WAIT_SECONDS = 0.8
"""A turn waits this long for answers; later ones are used by the next turn."""
FRESH_SECONDS = 0.9
"""An answer so young is not asked for again: less than the second between two turns of a pool that
moves, as events bring more."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A pod's state, the time it is of, and the last error, if the last request had one."""

    state: WorkerReport | None = None
    at: float = float("-inf")
    error: str | None = None


class PodStates:
    """The last answers of one pool's pods, by name."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._answers: dict[str, Answer] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._hurries = False

    async def read(
        self, clients: Mapping[str, WorkerClient], wait_seconds: float = WAIT_SECONDS
    ) -> Mapping[str, Answer]:
        """Ask every pod that is not being asked already and has not just answered.

        The last answers of all.
        """
        self.forget(set(self._answers) - set(clients))
        fresh, new = self._clock() - FRESH_SECONDS, False
        for name, client in clients.items():
            if name not in self._asking and self._answers.get(name, Answer()).at <= fresh:
                self._asking[name], new = asyncio.create_task(self._ask(name, client)), True
        if self._asking:
            wait_seconds = 0.0 if self._hurries and not new else wait_seconds
            await asyncio.wait(self._asking.values(), timeout=wait_seconds)
        self._hurries = False
        return {name: self._answers.get(name, Answer()) for name in clients}

    def hurry(self) -> None:
        """The next read does not wait for those who are asked already: they have had their time."""
        self._hurries = True

    def changed(self, name: str) -> None:
        """What the pod said is over: it was told to do something else."""
        if (last := self._answers.get(name)) is not None:
            self._answers[name] = replace(last, at=last.at - FRESH_SECONDS)

    def forget(self, names: Iterable[str]) -> None:
        """Those pods are gone."""
        for name in list(names):
            self._answers.pop(name, None)
            if (task := self._asking.pop(name, None)) is not None:
                task.cancel()

    def close(self) -> None:
        """Ask no more."""
        self.forget(set(self._answers) | set(self._asking))

    async def _ask(self, name: str, client: WorkerClient) -> None:
        asked_at = self._clock()
        last = self._answers.get(name, Answer())
        try:
            state = await client.state()
            if last.state is not None and last.state.observed_at == state.observed_at:
                # It answers, but what it says is of then: as old as when it was first said.
                frozen = f"observed_at stands still at {state.observed_at:.3f}"
                self._answers[name] = Answer(state, last.at, frozen)
            else:
                self._answers[name] = Answer(state, asked_at)
        except WorkerUnreachable as error:
            self._answers[name] = Answer(last.state, last.at, str(error))
        finally:
            self._asking.pop(name, None)
