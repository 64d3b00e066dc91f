"""Kinds of tasks beside the engines': what packages of the group ``llmtaskpool.kinds`` import."""

from llmtaskpool_worker.kinds.registry import (
    EMBED_KINDS,
    ENGINE_KINDS,
    ENTRY_POINT_GROUP,
    EVALUATE_KINDS,
    GENERATE_KINDS,
    LANES,
    ArgumentsError,
    AsyncHandler,
    CallContext,
    HandlerError,
    Kind,
    Kinds,
    SyncHandler,
    load_entry_points,
)

__all__ = [
    "EMBED_KINDS",
    "ENGINE_KINDS",
    "ENTRY_POINT_GROUP",
    "EVALUATE_KINDS",
    "GENERATE_KINDS",
    "LANES",
    "ArgumentsError",
    "AsyncHandler",
    "CallContext",
    "HandlerError",
    "Kind",
    "Kinds",
    "SyncHandler",
    "load_entry_points",
]
