"""A client of the task routes of a worker or a local pool, for the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

DEFAULT_URL = "http://127.0.0.1:8080"
URL_VARIABLE = "LLMTASKPOOL_URL"
KEY_VARIABLE = "LLMTASKPOOL_API_KEY"
SECONDS = 30.0
"""For an answer that is not waited for on purpose."""
ONE_WAIT_SECONDS = 30.0
"""A wait is asked for in pieces of this length, so that no proxy cuts it."""

ENDED = frozenset({"succeeded", "failed", "cancelled", "expired", "dead"})


class Unreachable(Exception):
    """Nobody answers at the address; the message has the remedy."""


class Refused(Exception):
    """The answer is an error: ``status``, and what it says."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Tasks:
    """The tasks behind ``url``. Raises Unreachable and Refused from every call."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url = url.rstrip("/")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self._url, headers=headers, timeout=SECONDS)

    def __enter__(self) -> Tasks:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def submit(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Accept a task."""
        return self._ask("POST", "/v1/tasks", json=body)

    def look(self, task_id: str, wait_seconds: float = 0.0) -> dict[str, Any]:
        """A task as it is now, or once it has ended within so many seconds."""
        wait = min(wait_seconds, ONE_WAIT_SECONDS)
        params = {"wait": f"{wait:g}"} if wait > 0 else {}
        return self._ask("GET", _path(task_id), params=params, timeout=SECONDS + wait)

    def graph(self, graph_id: str) -> dict[str, Any]:
        """A graph as it is now, and its tasks by name."""
        return self._ask("GET", f"/v1/graphs/{quote(graph_id, safe='')}")

    def graph_events(
        self, graph_id: str, silent_seconds: float
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """What becomes of a graph, from where it is now until it has ended: name and data.

        ("", {}) is a sign of life. It ends early when nothing comes for ``silent_seconds``.
        """
        path = f"/v1/graphs/{quote(graph_id, safe='')}/events"
        timeout = httpx.Timeout(SECONDS, read=silent_seconds)
        try:
            with self._http.stream("GET", path, timeout=timeout) as answer:
                if answer.is_error:
                    answer.read()
                    raise Refused(answer.status_code, _told(answer))
                name = ""
                for line in answer.iter_lines():
                    if line.startswith("event: "):
                        name = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        yield name, json.loads(line.removeprefix("data: "))
                    elif line.startswith(":"):
                        yield "", {}
        except httpx.ReadTimeout:
            return
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None

    def cancel(self, task_id: str) -> dict[str, Any]:
        """A task that has not ended is cancelled."""
        return self._ask("DELETE", _path(task_id))

    def replay(self, task_id: str) -> dict[str, Any]:
        """A dead letter waits again."""
        return self._ask("POST", f"{_path(task_id)}/replay")

    def listed(
        self, most: int, *, states: str | None = None, labels: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """At most so many tasks, newest first. ``labels`` are NAME:VALUE."""
        found: list[dict[str, Any]] = []
        params: dict[str, Any] = {"label": [*labels]}
        if states is not None:
            params["state"] = states
        while len(found) < most:
            params["limit"] = min(100, most - len(found))
            page = self._ask("GET", "/v1/tasks", params=params)
            found += page["data"]
            if not page["has_more"] or not page["data"]:
                break
            params["after"] = found[-1]["id"]
        return found

    def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, **more)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from None
        try:
            told = answer.json()
        except json.JSONDecodeError:
            told = None
        if not isinstance(told, dict):
            raise Refused(answer.status_code, f"{self._url} is no pool: it answers no JSON object")
        if answer.is_error:
            raise Refused(answer.status_code, _reason(told))
        return told

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(
            f"{self._url} does not answer ({type(error).__name__}): is a pool there? Name it "
            f"with --url or {URL_VARIABLE}"
        )


def key_of_environment() -> str | None:
    """The key to show; None: none is set."""
    return os.environ.get(KEY_VARIABLE) or None


def _path(task_id: str) -> str:
    return f"/v1/tasks/{quote(task_id, safe='')}"


def _told(answer: httpx.Response) -> str:
    try:
        told = answer.json()
    except json.JSONDecodeError:
        told = None
    return _reason(told if isinstance(told, dict) else {})


def _reason(told: Mapping[str, Any]) -> str:
    error = told.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else "it refuses, and does not say why"
