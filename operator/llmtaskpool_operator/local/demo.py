"""The demo: a burst of real, mixed, prioritized work through the pool's public HTTP port.

Batch generations come first and fill the queue; chats, embeddings, searches, pictures and file
tasks come after them and, by their weight and size, go before. Every answer is looked at, and one
lost request fails the demo.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, hypot
from typing import Any

import httpx
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llmtaskpool_operator.local.digits import picture

CHAT_WEIGHT = 20.0
EMBED_WEIGHT = 5.0
IO_WEIGHT = 1.0
BATCH_WEIGHT = 0.2
RERANK_WEIGHT = 10.0
IMAGE_WEIGHT = 2.0
WEIGHTS = {
    "chat": CHAT_WEIGHT, "rerank": RERANK_WEIGHT, "embed": EMBED_WEIGHT, "image": IMAGE_WEIGHT,
    "io": IO_WEIGHT, "batch": BATCH_WEIGHT,
}  # fmt: skip
ATTEMPT_SECONDS = 300.0

SUBJECTS = (
    "rain", "bread", "the moon", "bicycles", "tea", "bees", "a lighthouse", "snow", "maps",
    "clocks", "rivers", "violins", "wool", "salt", "kites", "glass",
)  # fmt: skip
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "What do bees make?",
    "How many days are in a week?",
    "What is frozen water called?",
    "Which planet do we live on?",
)
SENTENCES = (
    "A cat sleeps on the warm sofa.",
    "A kitten naps on the couch.",
    "The central bank raised interest rates.",
)

SEARCHES = (
    ("Where does the young cat sleep?", SENTENCES[1]),
    ("What happened to the cost of borrowing money?", SENTENCES[2]),
)
PICTURES_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Size:
    """How much work the demo does; ``chat_seconds`` is the time between two chats.

    A batch text has ``batch_tokens`` to twice as many tokens; every ``keep``-th is kept as a file.
    At most ``batch_at_once`` are submitted and not done: as from any batch client, so that a
    worker that comes later gets its share of what is still to come.
    """

    batch: int = 64
    batch_at_once: int = 32
    batch_tokens: int = 32
    keep: int = 4
    chats: int = 20
    chat_tokens: int = 16
    chat_seconds: float = 1.5
    embeddings: int = 20
    reranks: int = 12
    images: int = 12


@dataclass(frozen=True, slots=True)
class Outcome:
    """One task: how long it waited for its start (a chat: for its first token)."""

    kind: str
    wait_seconds: float
    error: str | None = None


@dataclass(slots=True)
class Results:
    """What came of the work so far."""

    outcomes: list[Outcome] = field(default_factory=list)
    answer: tuple[str, str] | None = None
    similarities: tuple[float, float] | None = None
    found: tuple[str, str] | None = None
    """A question, and which of the sentences answers it."""
    seen: str | None = None
    """What the pictures of one request show."""


class Demo:
    """Runs the burst against ``url``.

    ``image_model`` tells handwritten digits apart (digits.py); None: there are no pictures.
    """

    def __init__(
        self,
        url: str,
        *,
        chat_model: str,
        embed_model: str,
        image_model: str | None,
        clock: Callable[[], float],
        key: str | None = None,
        size: Size | None = None,
    ) -> None:
        self.size = size or Size()
        self.results = Results()
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(),
            TimeElapsedColumn(), auto_refresh=False,
        )  # fmt: skip
        self._batch_turn = asyncio.Semaphore(self.size.batch_at_once)
        self._chat_model = chat_model
        self._embed_model = embed_model
        self._image_model = image_model
        self._clock = clock
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=ATTEMPT_SECONDS,
            trust_env=False,
            headers={"authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=None),
        )
        totals = {
            "batch": self.size.batch,
            "chat": self.size.chats,
            "rerank": self.size.reranks,
            "embed": self.size.embeddings,
            "image": self.size.images if image_model else 0,
            "io": 2 * ceil(self.size.batch / self.size.keep),
        }
        self._bars = {
            name: self.progress.add_task(name, total=n) for name, n in totals.items() if n
        }

    async def run(self) -> Results:
        """Send the burst and wait for all of it; never raises for a task that failed."""
        async with self._client:
            work: list[Awaitable[None]] = [
                self._attempt("batch", self._batch(number)) for number in range(self.size.batch)
            ]
            batch = asyncio.gather(*work)
            await asyncio.sleep(self.size.chat_seconds)  # batch work is there first
            later = [
                self._attempt("embed", self._embedding(n)) for n in range(self.size.embeddings)
            ]
            later += [self._attempt("rerank", self._search(n)) for n in range(self.size.reranks)]
            if self._image_model is not None:
                later += [self._attempt("image", self._look(n)) for n in range(self.size.images)]
            await asyncio.gather(batch, self._chats(), *later)
        return self.results

    async def _chats(self) -> None:
        running = []
        for number in range(self.size.chats):
            running.append(asyncio.ensure_future(self._attempt("chat", self._chat(number))))
            await asyncio.sleep(self.size.chat_seconds)
        await asyncio.gather(*running)

    async def _attempt(self, kind: str, work: Awaitable[float]) -> None:
        """Note what came of one task."""
        try:
            self._note(Outcome(kind, await work))
        except (httpx.HTTPError, _Wrong) as error:
            what = str(error) or type(error).__name__
            self._note(Outcome(kind, 0.0, f"{kind}: {what}"))

    def _note(self, outcome: Outcome) -> None:
        self.results.outcomes.append(outcome)
        self.progress.advance(self._bars[outcome.kind])

    async def _batch(self, number: int) -> float:
        async with self._batch_turn:
            return await self._write(number)

    async def _write(self, number: int) -> float:
        subject = SUBJECTS[number % len(SUBJECTS)]
        tokens = self.size.batch_tokens + 7 * number % self.size.batch_tokens
        ended = await self._task(
            {
                "kind": "chat",
                "model": self._chat_model,
                "input": [{"role": "user", "content": f"Write a short text about {subject}."}],
                "arguments": {"max_tokens": tokens, "temperature": 0.7, "seed": number},
                "weight": BATCH_WEIGHT,
                "labels": {"class": "batch"},
            }
        )  # fmt: skip
        text = str(ended["result"]["text"])
        if not text.strip():
            raise _Wrong("an empty text came back")
        if number % self.size.keep == 0:
            await self._keep(number, text)
        return _waited(ended)

    async def _keep(self, number: int, text: str) -> None:
        """Write a batch result to the pool's data folder and read it back, as io tasks."""
        name = f"demo/text-{number}.txt"
        await self._attempt("io", self._io("io.write", {"name": name, "content": text}, None))
        await self._attempt("io", self._io("io.read", {"name": name}, text))

    async def _io(self, kind: str, arguments: dict[str, Any], expected: str | None) -> float:
        ended = await self._task({"kind": kind, "arguments": arguments, "weight": IO_WEIGHT})
        if expected is not None and expected not in _texts(ended["result"]["value"]):
            raise _Wrong("what was read is not what was written")
        return _waited(ended)

    async def _task(self, body: dict[str, Any]) -> dict[str, Any]:
        """Submit a task and wait for its end."""
        submitted = await self._client.post("/v1/tasks", json=body)
        view = _good(submitted, 202)
        while view["state"] in ("queued", "running"):
            view = _good(await self._client.get(f"/v1/tasks/{view['id']}", params={"wait": "60"}))
        if view["state"] != "succeeded":
            raise _Wrong(f"a task {view['state']}: {view['error']}")
        return view

    async def _chat(self, number: int) -> float:
        question = QUESTIONS[number % len(QUESTIONS)]
        body = {
            "model": self._chat_model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.size.chat_tokens,
            "temperature": 0,
            "stream": True,
            "weight": CHAT_WEIGHT,
        }
        asked, first, text = self._clock(), None, ""
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
            _status(answer, 200)
            done = False
            async for line in answer.aiter_lines():
                done = done or line == "data: [DONE]"
                delta = _delta(line)
                if delta and first is None:
                    first = self._clock() - asked
                text += delta
        if not done or first is None:
            raise _Wrong("a stream ended before its end")
        if self.results.answer is None:
            self.results.answer = (question, text.strip())
        return first

    async def _embedding(self, number: int) -> float:
        """Embed the sentences; its wait is that for the answer."""
        asked = self._clock()
        body = {
            "model": self._embed_model,
            "input": [*SENTENCES, f"This is number {number}."],
            "weight": EMBED_WEIGHT,
        }
        value = _good(await self._client.post("/v1/embeddings", json=body))
        cat, kitten, bank = (one["embedding"] for one in value["data"][:3])
        near, far = _cosine(cat, kitten), _cosine(cat, bank)
        if not near > far:
            raise _Wrong(f"unlike sentences are nearer ({far:.2f}) than like ones ({near:.2f})")
        self.results.similarities = (near, far)
        return self._clock() - asked

    async def _search(self, number: int) -> float:
        """Rank sentences by how well they answer; its wait is that for the answer."""
        question, answer = SEARCHES[number % len(SEARCHES)]
        asked = self._clock()
        body = {
            "model": self._embed_model,
            "query": question,
            "documents": list(SENTENCES[1:]),
            "top_n": 1,
            "weight": RERANK_WEIGHT,
        }
        value = _good(await self._client.post("/v1/rerank", json=body))
        best = SENTENCES[1:][value["results"][0]["index"]]
        if best != answer:
            raise _Wrong(f"{best!r} came out first for {question!r}")
        self.results.found = (question, best)
        return self._clock() - asked

    async def _look(self, number: int) -> float:
        """Read the digits in some pictures; its wait is that for the answer."""
        shown = [(number + place) % 10 for place in range(PICTURES_AT_ONCE)]
        asked = self._clock()
        body = {
            "model": self._image_model,
            "image": [b64encode(picture(digit)).decode() for digit in shown],
            "weight": IMAGE_WEIGHT,
        }
        value = _good(await self._client.post("/v1/classify", json=body))
        seen = " ".join(one["label"] for one in value["data"])
        if seen != " ".join(map(str, shown)):
            raise _Wrong(f"pictures of {shown} were read as {seen}")
        self.results.seen = seen
        return self._clock() - asked


class _Wrong(Exception):
    """An answer that is not as it must be."""


def _status(answer: httpx.Response, expected: int) -> None:
    if answer.status_code != expected:
        raise _Wrong(f"status {answer.status_code}: {answer.text[:200]}")


def _good(answer: httpx.Response, expected: int = 200) -> dict[str, Any]:
    _status(answer, expected)
    value: dict[str, Any] = answer.json()
    return value


def _waited(view: dict[str, Any]) -> float:
    return max(0.0, float(view["started_at"]) - float(view["submitted_at"]))


def _texts(value: Any) -> list[str]:
    return [str(one) for one in value.values()] if isinstance(value, dict) else [str(value)]


def _delta(line: str) -> str:
    """The text in one line of a chat stream."""
    data = line.removeprefix("data: ")
    if data == line or data == "[DONE]":
        return ""
    choices = json.loads(data).get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or "")


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (hypot(*a) * hypot(*b))
