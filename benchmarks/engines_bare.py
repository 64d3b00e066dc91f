"""The least that serves a text or a row of a table over HTTP: an engine, Starlette, and no queue.

python benchmarks/engines_bare.py PORT TASK FOLDER THREADS

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
from llmtaskpool_worker.engines.protocol import (
    AdmitEmbedding,
    AdmitInputs,
    ModelSpec,
    Ready,
    Tensor,
    Values,
    Vector,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

PORT, TASK, FOLDER, THREADS = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
engine = EngineProcess(ModelSpec("bare", FOLDER, TASK, {"torch_threads": THREADS, "device": "cpu"}))
waiting: dict[int, asyncio.Future[Vector | Values]] = {}
ready = asyncio.Event()
if TASK == "embed":
    tokenizer = tokenizers.Tokenizer.from_file(f"{FOLDER}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()


async def follow() -> None:
    """Hand what is made to who waits for it."""
    async for event in engine.events():
        if isinstance(event, Ready):
            ready.set()
        elif isinstance(event, Vector | Values):
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


async def made(message: AdmitEmbedding | AdmitInputs) -> Vector | Values:
    """What the engine answers."""
    waiting[message.id] = asyncio.get_running_loop().create_future()
    engine.send(message)
    return await waiting[message.id]


async def embeddings(request: Request) -> JSONResponse:
    """POST /v1/embeddings."""
    body = json.loads(await request.body())
    tokens = tokenizer.encode(body["input"]).ids
    found = await made(AdmitEmbedding(len(waiting), tokens))
    assert isinstance(found, Vector)
    vector = struct.unpack(f"<{len(found.vector) // 4}f", found.vector)
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    usage = {"prompt_tokens": len(tokens), "total_tokens": len(tokens)}
    return JSONResponse({"object": "list", "data": data, "model": "bare", "usage": usage})


async def infer(request: Request) -> JSONResponse:
    """POST /v2/models/model/infer."""
    (given,) = json.loads(await request.body())["inputs"]
    numbers = struct.pack(f"<{len(given['data'])}f", *given["data"])
    tensor = Tensor(given["name"], given["datatype"], given["shape"], numbers)
    found = await made(AdmitInputs(len(waiting), tensors=[tensor]))
    assert isinstance(found, Values)
    (output,) = found.values
    scores = struct.unpack(f"<{len(output['data']) // 4}f", output["data"])
    told = {"model_name": "bare", "model_version": "1", "id": request.headers.get("x-request-id")}
    return JSONResponse(told | {"outputs": [output | {"data": scores}]})


routes = [
    Route("/v1/embeddings", embeddings, methods=["POST"]),
    Route("/v2/models/model/infer", infer, methods=["POST"]),
]
app = Starlette(routes=routes, lifespan=life)

if __name__ == "__main__":
    uvicorn.run(app, port=PORT, log_level="warning", loop="uvloop", http="httptools")
