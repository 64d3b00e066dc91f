"""Kinds of tasks beside the engines': what packages of the group ``llmtaskpool.kinds`` import."""

from llmtaskpool_worker.kinds.registry import (
    ENTRY_POINT_GROUP,
    ArgumentsError,
    CallContext,
    HandlerError,
    Kind,
    Kinds,
    load_entry_points,
)

__all__ = [
    "ENTRY_POINT_GROUP",
    "ArgumentsError",
    "CallContext",
    "HandlerError",
    "Kind",
    "Kinds",
    "load_entry_points",
]
