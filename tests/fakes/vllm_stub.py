"""A strict server that plays vLLM: its routes, batch, queue, metrics, errors and aborts.

Written from what was seen of vLLM 0.32 (its answers to a priority, to a full queue and to clients
that leave). It is strict where the pool has promises: it answers only streams with usage, and
refuses fields that are the pool's own. A token is a letter of the prompt; a step draws one for
each request that has a seat. Run as a program it serves until it is killed; SIGUSR1 has it hang,
and SIGUSR2 go on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

THE_POOL_S = ("weight", "timeout_seconds", "queue_timeout_seconds", "n", "service_tier")
DONE = b"data: [DONE]\n\n"


@dataclass(eq=False)
class Request:
    """One request: the letters that it has drawn, and whether it has a seat."""

    letters: str
    most: int
    ignore_eos: bool
    drawn: int = 0
    seated: bool = False
    gone: bool = False
    stepped: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        return self.drawn >= self.most or (not self.ignore_eos and self.drawn >= len(self.letters))

    @property
    def reason(self) -> str:
        return "length" if self.drawn >= self.most else "stop"


class VllmStub:
    """``seats``: its --max-num-seqs; ``queued``: its --max-num-queued-reqs; None: no bound."""

    def __init__(
        self,
        *,
        seats: int = 64,
        queued: int | None = None,
        step_seconds: float = 0.002,
        per_request_seconds: float = 0.0,
        model: str = "stub/letters",
        key: str | None = None,
    ) -> None:
        self.seats, self.queued, self.model, self.key = seats, queued, model, key
        self.step_seconds, self.per_request_seconds = step_seconds, per_request_seconds
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.seen: list[dict[str, Any]] = []
        self.peak = 0
        self.aborted = self.turned_away = self.preemptions = 0
        self.cache_usage = 0.0
        self.hangs = False
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def in_flight(self) -> int:
        return len(self.running) + len(self.waiting)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_post("/v1/embeddings", self.embeddings)
        for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
            app.router.add_post(path, self.rerank)
        for path in ("/score", "/v1/score"):
            app.router.add_post(path, self.score)
        app.router.add_post("/classify", self.classify)  # vLLM has it at its origin alone
        return app

    async def serve(self, port: int = 0, host: str = "127.0.0.1") -> web.AppRunner:
        runner = web.AppRunner(self.app(), handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, host, port)
        await site.start()
        self.port = runner.addresses[0][1]
        self._stepping = asyncio.create_task(self._step_for_ever())
        return runner

    # --- the engine -------------------------------------------------------------------------

    async def _step_for_ever(self) -> None:
        while True:
            running = len(self.running)
            await asyncio.sleep(self.step_seconds + self.per_request_seconds * running)
            if not self.hangs:
                self.step()

    def step(self) -> None:
        while self.waiting and len(self.running) < self.seats:
            request = self.waiting.pop(0)
            request.seated = True
            self.running.append(request)
        self.peak = max(self.peak, len(self.running))
        for request in list(self.running):
            request.drawn += 1
            if request.ended:
                self.running.remove(request)
            request.stepped.set()

    def leave(self, request: Request) -> None:
        for place in (self.running, self.waiting):
            if request in place:
                place.remove(request)
                self.aborted += 1

    # --- routes -----------------------------------------------------------------------------

    async def health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def models(self, request: web.Request) -> web.Response:
        if (refused := self._refused(request)) is not None:
            return refused
        one = {"id": self.model, "object": "model", "owned_by": "vllm", "max_model_len": 4096}
        return web.json_response({"object": "list", "data": [one]})

    async def metrics(self, _request: web.Request) -> web.Response:
        labels = f'{{engine="0",model_name="{self.model}"}}'
        values = {
            "vllm:num_requests_running": len(self.running),
            "vllm:num_requests_waiting": len(self.waiting),
            "vllm:kv_cache_usage_perc": self.cache_usage,
            "vllm:num_preemptions_total": self.preemptions,
        }
        lines = [f"# TYPE {name} gauge\n{name}{labels} {value}" for name, value in values.items()]
        return web.Response(text="\n".join(lines) + "\n")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        texts = [m["content"] for m in body.get("messages", []) if isinstance(m["content"], str)]
        return await self._generate(request, body, texts[-1] if texts else "picture", chat=True)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = body["prompt"]
        text = prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
        return await self._generate(request, body, text, chat=False)

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(body)
        if (refused := self._refused(request) or self._wrong(body)) is not None:
            return refused
        given = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = [
            {"object": "embedding", "index": at, "embedding": [float(len(text)), 0.5, 1.0]}
            for at, text in enumerate(given)
        ]
        tokens = sum(map(len, given))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response({"object": "list", "data": data, "usage": usage})

    async def rerank(self, request: web.Request) -> web.Response:
        """A document fits by the letters that it shares with the query."""
        body = await request.json()
        self.seen.append(body)
        if (refused := self._refused(request) or self._wrong(body)) is not None:
            return refused
        fit = [_fits(body["query"], one) for one in body["documents"]]
        order = sorted(range(len(fit)), key=lambda at: -fit[at])[: body.get("top_n")]
        results = [
            {"index": at, "document": {"text": body["documents"][at]}, "relevance_score": fit[at]}
            for at in order
        ]
        usage = {"prompt_tokens": 7, "total_tokens": 7}
        return web.json_response(
            {"id": "rerank-stub", "model": self.model, "usage": usage, "results": results}
        )

    async def score(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(body)
        if (refused := self._refused(request) or self._wrong(body)) is not None:
            return refused
        others = body["text_2"] if isinstance(body["text_2"], list) else [body["text_2"]]
        data = [
            {"index": at, "object": "score", "score": _fits(body["text_1"], one)}
            for at, one in enumerate(others)
        ]
        return web.json_response(self._list("score-stub", data))

    async def classify(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(body)
        if (refused := self._refused(request) or self._wrong(body)) is not None:
            return refused
        given = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = [
            {"index": at, "label": "long" if len(text) > 3 else "short", "probs": [0.9, 0.1]}
            for at, text in enumerate(given)
        ]
        return web.json_response(self._list("classify-stub", data))

    def _list(self, name: str, data: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        head = {"id": name, "object": "list", "created": 1, "model": self.model}
        return head | {"data": data, "usage": usage}

    async def _generate(
        self, request: web.Request, body: dict[str, Any], text: str, *, chat: bool
    ) -> web.StreamResponse:
        self.seen.append(body)
        wrong = self._refused(request) or self._wrong(body)
        if wrong is None and not (body.get("stream") and body["stream_options"]["include_usage"]):
            wrong = _error(400, "stub: only streams with usage are expected here")
        if wrong is None and len(text) > 4096:
            wrong = _error(
                400,
                "This model's maximum context length is 4096 tokens. However, your prompt contains "
                f"{len(text)} input tokens.",
            )
        if wrong is not None:
            return wrong
        if self.queued is not None and self.in_flight >= self.seats + self.queued:
            self.turned_away += 1
            return _error(503, "Service unavailable: too many queued requests.")
        most = body.get("max_completion_tokens") or body.get("max_tokens") or (4096 - len(text))
        one = Request(text, most, bool(body.get("ignore_eos")))
        self.waiting.append(one)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        try:
            await response.prepare(request)
            await self._stream(response, one, body, chat=chat)
        except ConnectionResetError:
            self.leave(one)  # nobody is there to hear of it, and no log of ten thousand
        except asyncio.CancelledError:
            self.leave(one)
            raise
        return response

    async def _stream(
        self, response: web.StreamResponse, one: Request, body: dict[str, Any], *, chat: bool
    ) -> None:
        head = {"id": "stub-1", "object": "chunk", "created": 1, "model": self.model}
        if chat:
            await response.write(_frame(head, {"delta": {"role": "assistant", "content": ""}}))
        told = 0
        while not (one.ended and told >= one.drawn):
            await one.stepped.wait()
            one.stepped.clear()
            while told < one.drawn:
                letter = one.letters[told % len(one.letters)] if one.letters else "-"
                told += 1
                ends = one.ended and told >= one.drawn
                choice = self._choice(letter, told, body, chat=chat)
                choice["finish_reason"] = one.reason if ends else None
                if ends and chat and "tools" in body and body.get("tool_choice") != "none":
                    choice["finish_reason"] = "tool_calls"
                await response.write(_frame(head, choice))
        usage = {
            "prompt_tokens": len(one.letters),
            "completion_tokens": one.drawn,
            "total_tokens": len(one.letters) + one.drawn,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        await response.write(
            b"data: " + json.dumps(head | {"choices": [], "usage": usage}).encode() + b"\n\n"
        )
        await response.write(DONE)

    def _choice(self, letter: str, told: int, body: dict[str, Any], *, chat: bool) -> dict:
        if not chat:
            return {"text": letter, "logprobs": None}
        if "tools" in body and body.get("tool_choice") != "none":
            function: dict[str, Any] = {"arguments": letter}
            call: dict[str, Any] = {"index": 0, "function": function}
            if told == 1:
                function["name"] = body["tools"][0]["function"]["name"]
                call |= {"id": "call_1", "type": "function"}
            return {"delta": {"tool_calls": [call]}, "logprobs": None}
        choice: dict[str, Any] = {"delta": {"content": letter}, "logprobs": None}
        if body.get("logprobs"):
            one = {"token": letter, "logprob": -0.5, "bytes": list(letter.encode())}
            choice["logprobs"] = {"content": [one | {"top_logprobs": []}]}
        return choice

    def _refused(self, request: web.Request) -> web.Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return web.json_response({"error": "Unauthorized"}, status=401)

    def _wrong(self, body: dict[str, Any]) -> web.Response | None:
        if body["model"] != self.model:
            return _error(404, f"The model `{body['model']}` does not exist.")
        for name in THE_POOL_S:
            if name in body:
                return _error(400, f"stub: {name} is the pool's own field")
        if body.get("priority"):
            return _error(
                400,
                f"Got priority {body['priority']} but Priority scheduling is not enabled.",
            )
        most = body.get("max_tokens") or 0
        if most > 4096:
            return _error(
                400,
                f"This model's maximum context length is 4096 tokens. However, you requested {most}"
                " output tokens and your prompt contains 5 input tokens.",
            )
        return None


def _fits(query: str, document: str) -> float:
    return len(set(query) & set(document)) / max(1, len(set(document)))


def _error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return web.json_response({"error": error}, status=status)


def _frame(head: dict[str, Any], choice: dict[str, Any]) -> bytes:
    chunk = head | {"choices": [{"index": 0, "finish_reason": None} | choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


@contextmanager
def stub_serving(stub: VllmStub, port: int = 0) -> Iterator[VllmStub]:
    """The stub on a free port, in a thread and a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="vllm-stub", daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(stub.serve(port), loop).result(30)
    try:
        yield stub
    finally:

        async def end() -> None:
            stub._stepping.cancel()
            await runner.cleanup()

        asyncio.run_coroutine_threadsafe(end(), loop).result(90)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


async def _main(host: str, port: int, seats: int, step_seconds: float) -> None:
    stub = VllmStub(seats=seats, step_seconds=step_seconds)
    await stub.serve(port, host)
    sys.stdout.write(f"{stub.port}\n")
    sys.stdout.flush()
    over = asyncio.Event()  # the first process of a container is ended by nothing else
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    loop.add_signal_handler(signal.SIGUSR1, setattr, stub, "hangs", True)
    loop.add_signal_handler(signal.SIGUSR2, setattr, stub, "hangs", False)
    await over.wait()


if __name__ == "__main__":
    given = argparse.ArgumentParser()
    given.add_argument("--host", default="127.0.0.1")
    given.add_argument("--port", type=int, default=0)
    given.add_argument("--seats", type=int, default=64)
    given.add_argument("--step-seconds", type=float, default=0.01)
    chosen = given.parse_args()
    asyncio.run(_main(chosen.host, chosen.port, chosen.seats, chosen.step_seconds))
