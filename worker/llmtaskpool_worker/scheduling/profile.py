"""The calibration profile: a worker's measured curves as a file.

``llmtaskpool calibrate`` writes it, the cost model starts from it and the simulator runs on it.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

Size = Annotated[int, Field(ge=1, le=1_000_000)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
LEAST_SHARE = 0.1
"""A prompt's part of a step is never less: two measurements of one thing differ by noise."""


class CalibrationProfile(BaseModel):
    """What one model costs on one machine.

    ``step_seconds``: one decode step by batch size, of sequences ``context_tokens`` long.
    ``prefill_seconds``: the prefill of so many prompt tokens, alone. ``prefill_chunk_tokens``: the
    most prompt tokens that one step took. JSON, versioned; unknown fields are refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1] = 1
    model: Annotated[str, Field(min_length=1, max_length=256)]
    device: str
    dtype: str
    threads: Annotated[int, Field(ge=1)]
    created_at: AwareDatetime
    step_seconds: Annotated[dict[Size, Seconds], Field(min_length=1)]
    prefill_seconds: Annotated[dict[Size, Seconds], Field(min_length=1)]
    start_up_seconds: Annotated[float, Field(ge=0)] | None = None
    kv_tokens: Annotated[int, Field(ge=1)] | None = None
    prefill_chunk_tokens: Size | None = None
    context_tokens: Size | None = None
    output_tokens_mean: Annotated[float, Field(gt=0)] | None = None

    def step_alone_seconds(self) -> float:
        """What a step costs that is hardly more than a step: that of the smallest batch."""
        return self.step_seconds[min(self.step_seconds)]

    def prefill_added_seconds(self) -> dict[int, float]:
        """What prompts add to steps that are made anyway, by their tokens.

        ``prefill(P) - ceil(P / chunk) x step``: alone a prompt pays for its steps, and beside
        others (Sarathi-Serve's hybrid batches) it shares them. At least a tenth of it alone.
        """
        chunk = self.prefill_chunk_tokens or max(self.prefill_seconds)
        step = self.step_alone_seconds()
        return {
            tokens: max(seconds - ceil(tokens / chunk) * step, LEAST_SHARE * seconds)
            for tokens, seconds in self.prefill_seconds.items()
        }


def read(path: Path) -> CalibrationProfile:
    """The profile in ``path``. Raises ValueError that says what is wrong with the file."""
    try:
        return CalibrationProfile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"calibration profile {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(f"calibration profile {path}: {where}: {first['msg']}") from error


def write(profile: CalibrationProfile, path: Path) -> None:
    """Write the profile, whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(profile.model_dump_json(indent=2, exclude_none=True) + "\n")
    beside.replace(path)
