"""What the API server refuses of a pool's objects: told in its words, and tried again in time.

A refusal is an answer about what was asked for, not a fault of the server: the rest of the turn
goes on. Pure but for the clock that is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from llmtaskpool_operator.autoscaler.observation import Problem
from llmtaskpool_operator.cluster.api_client import ApiFailure
from llmtaskpool_operator.workers.backoff import Backoff

PACE = Backoff(first=1.0, most=30.0)
"""Between two tries at one that was refused: who makes room waits no longer."""
_CODES = (400, 403, 404, 405, 413, 415, 422)
_WORDS_MAX = 400
_FIELDS = (
    # In the server's path of a Deployment, and in the pool's; the first that is found counts.
    (r"nodeSelector", "spec.nodeSelector"),
    (r"tolerations", "spec.tolerations"),
    (r"affinity", "spec.affinity"),
    (r"priorityClassName", "spec.priorityClassName"),
    (r"resources\b", "spec.resources"),
    (r"\bimage\b", "spec.image"),
    (r"terminationGracePeriodSeconds", "spec.scaling.drainSeconds"),
    (r"replicas\b", "spec.replicas and spec.scaling"),
    (r"\.(?:env|envFrom)\b", "spec.env"),
    (r"spec\.template\.spec\.(\w+)", r"spec.\1"),
    (r"metadata\.labels", "the labels"),
)


def is_refusal(failure: BaseException) -> bool:
    """Whether the server judged what was asked for; else it is the server that has a problem."""
    if not isinstance(failure, ApiFailure):
        return False
    text = str(failure)
    return failure.code in _CODES or (
        failure.code >= 500 and ("webhook" in text or "failed to create typed patch" in text)
    )


def told(failure: ApiFailure, what: str, *, first: bool = False) -> Problem:
    """The problem of a refusal of ``what``, such as ``Deployment chat``; ``first``: it never was.

    Its message has the server's words and what to change.
    """
    words = re.sub(r"^\d{3}: ", "", " ".join(str(failure).split()))
    if len(words) > _WORDS_MAX:
        words = words[:_WORDS_MAX] + "..."
    passing = failure.code >= 500 and "webhook" in words
    state = "can't be made" if first else "is left as it was"
    message = f"{what} {state}: {words.rstrip('.')}: {_remedy(words)}"
    if passing:
        return Problem("WebhookFails", message, blocks=first)
    return Problem("Refused", message, stalled=True, blocks=first)


def _remedy(words: str) -> str:
    if "exceeded quota" in words or "must specify" in words or "failed quota" in words:
        return "raise the quota of this namespace, or ask for less; it is tried again"
    if "being terminated" in words:
        return "the namespace goes; make the pool in another"
    if re.search(r"failed calling webhook|calling webhook", words):
        return "bring that webhook back, or its configuration away; it is tried again"
    if re.search(r"denied (the )?request|ValidatingAdmissionPolicy", words):
        return "do what the policy asks for, or exempt this namespace; it is tried again"
    if re.search(r"cannot \w+ resource", words):
        return "give the operator the rights of its version: install its chart anew"
    if "could not find the requested resource" in words:
        return "this API server does not have that kind"
    for pattern, field in _FIELDS:
        if found := re.search(pattern, words):
            return f"change {found.expand(field)} of the pool"
    return "change what it names in the pool's spec; it is tried again"


@dataclass(slots=True)
class _Standing:
    generation: int
    problem: Problem
    until: float
    tries: int


class Refusals:
    """Of one pool: what stands refused, and until when it is not asked for again.

    ``clock`` gives seconds and goes forward. A new generation of the pool is tried at once.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._standing: dict[str, _Standing] = {}

    def standing(self, what: str, generation: int) -> Problem | None:
        """Why ``what`` is not to be asked for now; None: it may be."""
        known = self._standing.get(what)
        return (
            None if known is None or self._clock() >= known.until else self.last(what, generation)
        )

    def last(self, what: str, generation: int) -> Problem | None:
        """Why ``what`` was refused when it was asked for last, though it may be again by now."""
        known = self._standing.get(what)
        return known.problem if known is not None and known.generation == generation else None

    def refused(self, what: str, generation: int, failure: ApiFailure, *, first: bool) -> Problem:
        """It was refused. Raises ``failure`` where that is no refusal."""
        if not is_refusal(failure):
            raise failure
        known = self._standing.get(what)
        tries = 1 if known is None or known.generation != generation else known.tries + 1
        problem = told(failure, what, first=first)
        until = self._clock() + PACE.after(tries)
        self._standing[what] = _Standing(generation, problem, until, tries)
        return problem

    def taken(self, what: str) -> None:
        """It was not refused."""
        self._standing.pop(what, None)
