"""`spec.models[].limits`: what one model of a pool may have of what all of them share. Pure.

Each field is an option of the worker's `--model` too (docs/models.md), which `options` may still
give as text; what both say has to be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field

from llmtaskpool_operator.api.quantities import PATTERN, number
from llmtaskpool_operator.api.rules import Rule, Wire

Amount = Annotated[str, Field(min_length=1, max_length=32, pattern=PATTERN)]
"""Bytes as a text such as 2Gi. A number is none: rules of what may be both, for each of 16 models,
are over the API server's budget."""
WRITES = ("generate", "translate", "summarize", "transcribe")
"""Tasks of models that write token by token, over a cache."""


class ModelLimits(Wire):
    """What one model may have in each pod, where several share it."""

    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """The most of its tasks that run at once, of the compute lane's N. Default: what its memory
    holds, up to 256; of a server behind the pool what it says or shows."""
    waiting: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """The most of its tasks that wait in the queue; more are answered 429 with Retry-After.
    Default: what `queue.limit` leaves to it."""
    cores: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Cores of the processor that its matrix products use. Default: its part of the pod's."""
    memory: Amount | None = None
    """The most for its engine: weights, cache and what a step holds. What never fits is refused,
    and an engine that leaks beyond it begins anew. Default: an equal part of the pod's."""
    cache: Amount | None = None
    """The most for its key-value cache, of a model that writes. Default: half of the memory that is
    free once it has loaded, or what `memory` leaves."""
    context_length: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Tokens of a prompt and its answer, or of a text that is read; shorter than the model's
    own."""
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """The longest answer, in tokens: one that asks for more is refused, and one that asks for
    nothing gets at most that. Default: what the context leaves."""


OPTIONS = {
    "threads": "max_threads",
    "waiting": "max_waiting",
    "cores": "torch_threads",
    "memory": "memory_bytes",
    "cache": "cache_bytes",
    "contextLength": "context_length",
    "maxTokens": "max_tokens",
}
"""Each field's name on the wire, and the worker's option."""
AMOUNTS = ("memory", "cache")


def options_of(limits: ModelLimits | None) -> dict[str, str]:
    """The worker's options for these limits, amounts in bytes."""
    given = {} if limits is None else limits.wire()
    return {
        OPTIONS[name]: str(int(_bytes(value)) if name in AMOUNTS else value)
        for name, value in given.items()
    }


def memory_of(models: Iterable[Any]) -> Decimal:
    """Bytes of all models that have a limit, together."""
    limits = (model.limits for model in models)
    return sum((_bytes(one.memory) for one in limits if one and one.memory is not None), Decimal(0))


def _bytes(amount: object) -> Decimal:
    return number(amount) or Decimal(0)


def _same(name: str) -> Callable[[Any], bool]:
    option = OPTIONS[name]

    def holds(model: Any) -> bool:
        told, text = options_of(model.limits).get(option), model.options.get(option)
        return told is None or text is None or number(text) == number(told)

    return holds


def _twice(name: str) -> Rule:
    """A limit and the option for the same say the same."""
    option = OPTIONS[name]
    limit, text = f"self.limits.{name}", f"self.options['{option}']"
    if name in AMOUNTS:
        equal = f"(isQuantity({text}) && quantity({text}).compareTo(quantity({limit})) == 0)"
    else:
        equal = f"{text} == string({limit})"
    return Rule(
        f"!has(self.limits) || !has({limit}) || !has(self.options) || "
        f"!('{option}' in self.options) || {equal}",
        "limits",
        f"limits.{name} and options.{option} of a model say different things: keep limits.{name} "
        f"and take {option} out of options",
        _same(name),
    )


def _enough(name: str) -> Rule:
    """An amount is none that was meant in other units."""
    limit = f"self.limits.{name}"
    return Rule(
        f"!has(self.limits) || !has({limit}) || quantity({limit}).compareTo(quantity('1Mi')) >= 0",
        "limits",
        f"limits.{name} is less than 1Mi: write an amount with its unit, such as 2Gi",
        lambda m: (
            m.limits is None
            or (amount := getattr(m.limits, name)) is None
            or _bytes(amount) >= 1 << 20
        ),
    )


def _only(names: tuple[str, ...], cel: str, message: str, of: Callable[[Any], bool]) -> Rule:
    """These limits are there only of models for which ``cel`` holds."""
    there = " || ".join(f"has(self.limits.{name})" for name in names)
    wire = frozenset(names)
    return Rule(
        f"!has(self.limits) || !({there}) || {cel}",
        "limits",
        message,
        lambda m: m.limits is None or not wire & m.limits.wire().keys() or of(m),
    )


RULES = (
    *map(_twice, OPTIONS),
    *map(_enough, AMOUNTS),
    _only(
        ("memory", "cache", "cores"),
        "!self.source.startsWith('openai:')",
        "limits.memory, cache and cores are of engines of this pool, and the source is a server's "
        "(openai:): say them there (its arguments, spec.upstream.resources) and take them out here",
        lambda m: not m.source.startswith("openai:"),
    ),
    _only(
        ("cache",),
        "!has(self.task) || self.task in ['generate', 'translate', 'summarize', 'transcribe']",
        "limits.cache is of models that write (generate, translate, summarize, transcribe): this "
        "one keeps nothing, set limits.memory",
        lambda m: m.task in WRITES,
    ),
    _only(
        ("maxTokens",),
        "!has(self.task) || self.task in ['generate', 'translate', 'summarize']",
        "limits.maxTokens is of models that write texts (generate, translate, summarize): take it "
        "out",
        lambda m: m.task in ("generate", "translate", "summarize"),
    ),
    _only(
        ("contextLength",),
        "!has(self.task) || !(self.task in ['detect', 'tensor', 'transcribe'])",
        "limits.contextLength is of models that read texts, and not of detect, tensor or "
        "transcribe: take it out",
        lambda m: m.task not in ("detect", "tensor", "transcribe"),
    ),
)
"""Of a model with limits."""
