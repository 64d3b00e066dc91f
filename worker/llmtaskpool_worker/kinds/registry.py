"""The kinds of tasks beside the engines' own: what runs for ``Call``, and in which lane."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from llmtaskpool_worker.contract import LaneName

ENTRY_POINT_GROUP = "llmtaskpool.kinds"
GENERATE_KINDS = frozenset({"chat", "generate"})
SEQUENCE_KINDS = frozenset({"translate", "summarize"})
HEAR_KINDS = frozenset({"transcribe"})
EMBED_KINDS = frozenset({"embed"})
EVALUATE_KINDS = frozenset({"rerank", "score", "classify", "tag", "answer", "detect", "infer"})
ENGINE_KINDS = GENERATE_KINDS | SEQUENCE_KINDS | HEAR_KINDS | EMBED_KINDS | EVALUATE_KINDS
KIND_TASKS: Mapping[str, tuple[str, ...]] = {
    "chat": ("generate",),
    "generate": ("generate",),
    "embed": ("embed",),
    "rerank": ("rerank", "embed"),  # by the cosine of two embeddings, where no cross-encoder is
    "score": ("rerank", "embed"),
    "classify": ("classify",),
    "tag": ("tag",),
    "answer": ("answer",),
    "detect": ("detect",),
    "infer": ("tensor",),
    "translate": ("translate",),
    "summarize": ("summarize",),
    "transcribe": ("transcribe",),
}
"""The tasks of models that do a kind."""
LANES = ("compute", "io", "auto")


class HandlerError(Exception):
    """A handler's failure that its client may read: a code for programs, a sentence for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ArgumentsError(Exception):
    """The arguments of a call can't be run; ``field`` names the one at fault."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


@dataclass(slots=True)
class CallContext:
    """What a running handler may ask about its task.

    ``cancelled`` turns true when its result is no longer wanted (a thread can't be stopped from
    outside: a long handler looks at it). ``deadline`` is in seconds of the worker's clock.
    """

    task_id: str
    deadline: float
    cancelled: bool = False


SyncHandler = Callable[[dict[str, Any], CallContext], Any]
AsyncHandler = Callable[[dict[str, Any], CallContext], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A registered kind: its handler, its lane (auto: measured) and its check of arguments.

    ``check`` raises ArgumentsError before the task is accepted. A synchronous handler runs in
    a thread, an asynchronous one on the loop (in lane compute: in a thread of its own).
    """

    name: str
    handler: SyncHandler | AsyncHandler
    lane: Literal["compute", "io", "auto"] = "auto"
    check: Callable[[dict[str, Any]], None] | None = None

    @property
    def is_async(self) -> bool:
        """Whether the handler is a coroutine function."""
        return inspect.iscoroutinefunction(self.handler) or inspect.iscoroutinefunction(
            getattr(self.handler, "__call__", None)  # noqa: B004 - an object with async __call__
        )

    @property
    def first_lane(self) -> LaneName:
        """The lane before anything is measured: as declared, else by the handler's form."""
        if self.lane == "auto":
            return LaneName.IO if self.is_async else LaneName.COMPUTE
        return LaneName(self.lane)


@dataclass(slots=True)
class Kinds:
    """The registry: kinds by name."""

    by_name: dict[str, Kind] = field(default_factory=dict)

    def register(self, kind: Kind) -> None:
        """Add a kind. Raises ValueError for a bad or taken name or lane."""
        if not kind.name or len(kind.name) > 128 or not kind.name.isprintable():
            raise ValueError(f"kind name {kind.name!r} must be 1 to 128 printable characters")
        if kind.name in self.by_name or kind.name in ENGINE_KINDS:
            raise ValueError(f"kind {kind.name!r} is registered twice: rename one of them")
        if kind.lane not in LANES:
            raise ValueError(f"kind {kind.name!r}: lane {kind.lane!r} is not one of {LANES}")
        self.by_name[kind.name] = kind

    def get(self, name: str) -> Kind | None:
        """The kind of that name."""
        return self.by_name.get(name)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self.by_name)


def load_entry_points(kinds: Kinds, found: Iterable[EntryPoint] | None = None) -> None:
    """Register what installed packages offer under the group ``llmtaskpool.kinds``.

    An entry point names a handler function or a Kind. Raises TypeError with the entry point's
    name when it is neither.
    """
    for point in entry_points(group=ENTRY_POINT_GROUP) if found is None else found:
        loaded = point.load()
        if isinstance(loaded, Kind):
            kinds.register(loaded)
        elif callable(loaded):
            kinds.register(Kind(point.name, loaded))
        else:
            raise TypeError(
                f"entry point {point.name!r} of {ENTRY_POINT_GROUP} is a "
                f"{type(loaded).__name__}: name a function or a Kind"
            )
