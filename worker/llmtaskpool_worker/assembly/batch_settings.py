"""The settings of files and batches."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from llmtaskpool_worker.execution.files import FileLimits

_Size = Annotated[int, Field(ge=1)]
_USUAL = FileLimits()


class BatchSettings(BaseSettings):
    """What a worker is told of files and batches."""

    model_config = SettingsConfigDict(frozen=True)

    file_store_bytes: _Size = Field(
        256 * 1024 * 1024,
        description="Bytes that files and batches may hold where the queue is, as they lie there: "
        "compressed, a fifth of JSON lines.",
    )
    file_bytes: _Size = Field(_USUAL.file_bytes, description="Longest file of an upload.")
    file_seconds: Annotated[float, Field(ge=3600, allow_inf_nan=False)] = Field(
        _USUAL.keep_seconds,
        description="Files are kept so long where they don't say it themselves, and batches with "
        "their results after their end.",
    )
    batch_lines: _Size = Field(_USUAL.lines, description="Most lines of a file.")
    batch_window: Annotated[int, Field(ge=1, le=10_000)] = Field(
        _USUAL.window_lines,
        description="Lines of all batches that a worker has in the queue at one time.",
    )

    def file_limits(self, line_bytes: int) -> FileLimits:
        """The bounds of files and batches; of one line ``line_bytes``."""
        return FileLimits(
            file_bytes=self.file_bytes,
            lines=self.batch_lines,
            keep_seconds=self.file_seconds,
            window_lines=self.batch_window,
            line_bytes=line_bytes,
        )
