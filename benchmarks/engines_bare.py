"""The least that serves a model over HTTP: its tokenizer, its engine, Starlette, and no queue.

python benchmarks/engines_bare.py PORT FOLDER THREADS

The floor of engines_overhead.py: no keys, no limits, no priorities, no batches, no metrics, no log.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import tokenizers
import uvicorn
from llmtaskpool_worker.engines.process import EngineProcess
from llmtaskpool_worker.engines.protocol import AdmitEmbedding, ModelSpec, Ready, Vector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

PORT, FOLDER, THREADS = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
tokenizer = tokenizers.Tokenizer.from_file(f"{FOLDER}/tokenizer.json")
tokenizer.no_truncation()
tokenizer.no_padding()
engine = EngineProcess(
    ModelSpec("bare", FOLDER, "embed", {"torch_threads": THREADS, "device": "cpu"})
)
waiting: dict[int, asyncio.Future[Vector]] = {}
ready = asyncio.Event()


async def follow() -> None:
    """Hand each vector to who waits for it."""
    async for event in engine.events():
        if isinstance(event, Ready):
            ready.set()
        elif isinstance(event, Vector):
            waiting.pop(event.id).set_result(event)


@asynccontextmanager
async def life(_: Starlette) -> AsyncIterator[None]:
    """The engine is there before the first request."""
    await engine.start()
    following = asyncio.create_task(follow())
    await ready.wait()
    yield
    await engine.stop(5.0)
    await following


async def embeddings(request: Request) -> JSONResponse:
    """POST /v1/embeddings."""
    body = json.loads(await request.body())
    tokens = tokenizer.encode(body["input"]).ids
    number = len(waiting)
    waiting[number] = asyncio.get_running_loop().create_future()
    engine.send(AdmitEmbedding(number, tokens))
    made = await waiting[number]
    vector = struct.unpack(f"<{len(made.vector) // 4}f", made.vector)
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    usage = {"prompt_tokens": len(tokens), "total_tokens": len(tokens)}
    return JSONResponse({"object": "list", "data": data, "model": "bare", "usage": usage})


app = Starlette(routes=[Route("/v1/embeddings", embeddings, methods=["POST"])], lifespan=life)

if __name__ == "__main__":
    uvicorn.run(app, port=PORT, log_level="warning", loop="uvloop", http="httptools")
