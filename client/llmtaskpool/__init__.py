"""A typed client of pools: tasks, graphs, dead letters and batches.

``Client`` for programs that wait, ``AsyncClient`` for those of asyncio. What OpenAI's API has
(chats, embeddings) is better asked with the ``openai`` package.
"""

from llmtaskpool.bodies import BatchFields, TaskFields
from llmtaskpool.clients import AsyncClient, Client
from llmtaskpool.errors import PoolError, Refused, TaskFailed, Unreachable, WaitTimeout
from llmtaskpool.views import Batch, BatchCounts, Failure, File, Graph, GraphEvent, Task

__all__ = [
    "AsyncClient",
    "Batch",
    "BatchCounts",
    "BatchFields",
    "Client",
    "Failure",
    "File",
    "Graph",
    "GraphEvent",
    "PoolError",
    "Refused",
    "Task",
    "TaskFailed",
    "TaskFields",
    "Unreachable",
    "WaitTimeout",
]
