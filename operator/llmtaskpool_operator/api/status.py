"""`status`: what the operator saw and decided. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from llmtaskpool_worker.contract import LaneName
from pydantic import Field

from llmtaskpool_operator.api.rules import Text, Wire, list_map


class ConditionType(StrEnum):
    """The conditions of a pool, in kstatus form."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    SCALING_ACTIVE = "ScalingActive"
    SCALING_LIMITED = "ScalingLimited"
    METRICS_AVAILABLE = "MetricsAvailable"
    DEGRADED = "Degraded"
    SCALING_CONFLICT = "ScalingConflict"


_UNTOLD: set[str] = set()


class _Told(Wire):
    def model_post_init(self, _context: object, /) -> None:
        """Let go of which fields were given: nobody asks, and it is half of a status' memory."""
        object.__setattr__(self, "__pydantic_fields_set__", _UNTOLD)


class Condition(_Told):
    """One aspect of the pool's state."""

    type: Annotated[str, Field(min_length=1, max_length=63)]
    """Which aspect: Ready, Reconciling, Stalled, ScalingActive, ScalingLimited,
    MetricsAvailable, Degraded or ScalingConflict; docs/operations.md says what each asks for."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9]*$")]
    """Why, in one word."""
    message: Text = ""
    """Why, in a sentence."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When `status` last changed."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation of the spec that this is about."""


class LaneStatus(_Told):
    """Threads of one lane over the pool's pods."""

    lane: LaneName
    """Which lane; one entry for each."""
    desired: Annotated[int, Field(ge=0)]
    """Threads asked for, over all pods."""
    observed: Annotated[int, Field(ge=0)]
    """Threads in force, over all pods that answered."""
    active: Annotated[int, Field(ge=0)] = 0
    """Tasks that run, over all pods."""
    queued: Annotated[int, Field(ge=0)] = 0
    """Tasks that wait, over all pods."""


Share = Annotated[float, Field(ge=0, le=1)]


class GpuStatus(_Told):
    """How much of their GPUs the pool's pods use, as NVML tells it."""

    pods: Annotated[int, Field(ge=0)] = 0
    """Pods that tell of a GPU."""
    utilization: Share | None = None
    """Share of time in which any kernel ran, mean over these pods. It is near 1 at any load."""
    highest_utilization: Share | None = None
    """The same of the busiest pod."""
    memory: Share | None = None
    """Share of the GPUs' memory that is in use, mean over these pods."""
    highest_memory: Share | None = None
    """The same of the fullest pod."""
    busiest_pod: Annotated[str, Field(max_length=253)] = ""
    """Name of the busiest pod."""
    sm_activity: Share | None = None
    """Share of the multiprocessors that worked, mean over the pods whose GPUs count it."""
    highest_sm_activity: Share | None = None
    """The same of the most active pod."""


class RecordedDecision(_Told):
    """A decision that changed something."""

    time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When it was decided, in UTC."""
    what: Annotated[str, Field(max_length=64)]
    """What was decided about: `replicas`, `threads/compute` or `threads/io`."""
    before: Annotated[int, Field(ge=0)]
    """N before: replicas, or the lane's threads over all pods."""
    after: Annotated[int, Field(ge=0)]
    """N that was decided."""
    reason: Text
    """Why, in one line: what was measured, and what held it back."""


class LLMTaskPoolStatus(_Told):
    """What the operator saw and decided."""

    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation of the spec that this status is about."""
    replicas: Annotated[int, Field(ge=0)] = 0
    """Pods that exist, those that drain left out."""
    desired_replicas: Annotated[int, Field(ge=0)] = 0
    """Replicas asked for. In mode Advise: those there are."""
    ready_replicas: Annotated[int, Field(ge=0)] = 0
    """Pods that are ready and take tasks."""
    draining_replicas: Annotated[int, Field(ge=0)] = 0
    """Pods that finish what they have and go."""
    selector: Annotated[str, Field(max_length=1024)] = ""
    """Label selector of the pods, for `/scale`."""
    utilization: float | None = None
    """U of the last decision about replicas, over 1 when more is asked than the pods can do. It
    changes only by more than 0.05, so that the status is not written all the time."""
    queued: Annotated[int, Field(ge=0)] = 0
    """Tasks that wait, over all pods and lanes."""
    threads: Annotated[
        list[LaneStatus], Field(max_length=8, json_schema_extra=list_map("lane"))
    ] = Field(default_factory=list)
    """Threads per lane, over all pods."""
    gpu: GpuStatus | None = None
    """Use of the pods' GPUs; none where no pod tells of one. It changes only by more than 0.05."""
    last_decisions: Annotated[
        list[RecordedDecision],
        Field(max_length=10, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = Field(default_factory=list)
    """The last decisions that changed something, newest first."""
    conditions: Annotated[
        list[Condition], Field(max_length=16, json_schema_extra=list_map("type"))
    ] = Field(default_factory=list)
    """Conditions, in kstatus form: Reconciling and Stalled are there only while they hold."""
