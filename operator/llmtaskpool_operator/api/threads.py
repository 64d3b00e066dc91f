"""`spec.threads`: threads of each lane. Pure."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtaskpool_operator.api.rules import Rule, Wire, shared


class LaneThreads(Wire):
    """Threads (N) of one lane in each pod."""

    mode: Literal["Auto", "Fixed"] = "Auto"
    """Auto: the operator sets threads every second. Fixed: `initial` holds."""
    initial: Annotated[int, Field(ge=1, le=4096)] = 4
    """Threads of a new pod of a new pool; later ones start with what the pool has."""
    min: Annotated[int, Field(ge=1, le=4096)] = 1
    """The least threads, in each pod."""
    max: Annotated[int, Field(ge=1, le=4096)] = 256
    """The most threads, in each pod; a worker that finds fewer useful caps them itself."""
    target_utilization: Annotated[float, Field(ge=0.05, le=1)] = 0.8
    """Utilization of the threads to steer for: tasks that run and wait over the threads."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.min <= self.max",
            "min",
            "threads min is greater than max: lower min or raise max",
            lambda t: t.min <= t.max,
        ),
        Rule(
            "self.initial >= self.min && self.initial <= self.max",
            "initial",
            "threads initial is not between min and max: choose a value between them",
            lambda t: t.min <= t.initial <= t.max,
        ),
    )


class ComputeThreads(LaneThreads):
    """Threads (N) of the compute lane in each pod."""

    sm_activity_target: Annotated[float, Field(ge=0.05, le=1)] | None = None
    """A full pod gets no more threads while the activity of its GPUs' multiprocessors
    (SM) is at this share. Only where workers tell it (NVIDIA Hopper and later). What it is at a
    full batch differs by model: read it from the status before you choose. Without it nothing is
    bound by GPU activity."""


class Threads(Wire):
    """Threads per lane."""

    compute: ComputeThreads = Field(default_factory=shared(ComputeThreads()))
    """The compute lane: slots of the batch that the model works on at once."""
    io: LaneThreads = Field(default_factory=shared(LaneThreads(initial=16)))
    """The io lane: tasks that mostly wait for others. Without `io`, `initial` is
    16; with it, what it says, else 4."""
