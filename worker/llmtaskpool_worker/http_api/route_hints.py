"""What to use instead of a route that clients of other APIs ask for."""

from __future__ import annotations

_CHAT = "/v1/chat/completions"
_INSTEAD = {
    "responses": _CHAT,
    "conversations": _CHAT,
    "assistants": _CHAT,
    "threads": _CHAT,
    "messages": _CHAT,
    "chat": _CHAT,
    "generate": "/v1/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "embed": "/v1/embeddings",
    "models": "/v1/models",
    "tags": "/v1/models",
    "tasks": "/v1/tasks",
}
"""By the first part of a path after /v1 or /api: OpenAI's other APIs, Anthropic's, Ollama's."""


def hint(path: str) -> str:
    """A sentence with the route to use instead, where one is known; nothing of ``path`` itself."""
    parts = [part for part in path.split("/") if part]
    while parts and parts[0] in ("v1", "api"):
        del parts[0]
    instead = _INSTEAD.get(parts[0]) if parts else None
    return "" if instead is None else f" Use {instead}."
