"""What a server says of itself before the first request: that it is there, its model, its size."""

from __future__ import annotations

from typing import Any

import msgspec

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.engines.protocol import ModelSpec, Ready
from llmtaskpool_worker.engines.upstream.connections import BROKEN, Connections

PAGE_BYTES = 4 * 1024 * 1024
ANSWER_SECONDS = 10.0
ASIDE_SECONDS = 2.0
"""For pages that only some servers have."""
THREADS = 4096
"""Of a server that doesn't tell how many requests it runs: the lane's own limit decides."""


class NotThere(Exception):
    """The server can't be reached, or loads: it is waited for."""


class Unusable(Exception):
    """The server answers and can't be used as it is: says why, and the remedy."""


async def greet(connections: Connections, spec: ModelSpec) -> tuple[Ready, str]:
    """What the server has, and its own name of the model. Raises NotThere, Unusable."""
    listed = await _models(connections)
    model = _chosen(listed, connections.address.model, spec.name)
    root = connections.address.root
    props = await _aside(connections, f"{root}/props")
    options = spec.options
    size = options.get("max_threads") or _whole(props.get("total_slots"))
    if not size:
        about = await _aside(connections, f"{root}/server_info")
        size = _whole(about.get("max_running_requests"))
    meta = model.get("meta")
    context = (
        options.get("context_length")
        or _whole(model.get("max_model_len"))
        or _whole(_object(props.get("default_generation_settings")).get("n_ctx"))
        or _whole(_object(meta).get("n_ctx_train"))
        or 0
    )
    owner = model.get("owned_by")
    ready = Ready(
        context_length=context,
        vocab_size=0,
        eos_token_ids=[],
        device="upstream",
        dtype=owner if isinstance(owner, str) and len(owner) <= 64 else "",
        max_threads=size or THREADS,
    )
    return ready, str(model["id"])


async def _models(connections: Connections) -> list[dict[str, Any]]:
    url = connections.address.url
    try:
        status, page = await connections.get(
            f"{url}/models", seconds=ANSWER_SECONDS, most=PAGE_BYTES
        )
    except BROKEN as error:
        raise NotThere(f"the server at {url} can't be reached ({type(error).__name__})") from None
    if status in (401, 403):
        raise Unusable(
            f"the server at {url} asks for a key: put it into a variable of the worker and name "
            "that with the model's option api_key_env"
        )
    if status >= 500 or status == 429:
        raise NotThere(f"the server at {url} answers with status {status}: it may still load")
    listed = _object(_decoded(page)).get("data")
    if status != 200 or not isinstance(listed, list):
        raise Unusable(
            f"the server at {url} has no list of models (status {status}): the address must be "
            "what /models is added to, such as http://127.0.0.1:8001/v1"
        )
    return [one for one in listed if isinstance(one, dict) and isinstance(one.get("id"), str)]


def _chosen(listed: list[dict[str, Any]], wanted: str, own: str) -> dict[str, Any]:
    """The model that is meant: as named, else the only one, else one that is called as ours."""
    names = [str(one["id"]) for one in listed]
    for name in [wanted] if wanted else [own]:
        if name in names:
            return listed[names.index(name)]
    if not wanted and len(listed) == 1:
        return listed[0]
    has = ", ".join(shown(name) for name in names[:8]) or "none"
    if wanted:
        raise Unusable(f"the server has no model {shown(wanted)}, but {has}: name one after #")
    raise Unusable(f"the server has the models {has}: say which after # in the source")


async def _aside(connections: Connections, url: str) -> dict[str, Any]:
    """An object that some servers have at ``url``; empty where this one does not."""
    try:
        status, page = await connections.get(url, seconds=ASIDE_SECONDS, most=PAGE_BYTES)
    except BROKEN:
        return {}
    return _object(_decoded(page)) if status == 200 else {}


def _decoded(page: bytes) -> Any:
    try:
        return msgspec.json.decode(page)
    except (msgspec.DecodeError, ValueError):
        return None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int | None:
    return value if type(value) is int and 1 <= value <= 100_000_000 else None
