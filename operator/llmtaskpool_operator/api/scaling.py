"""`spec.scaling`: how replicas are decided. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llmtaskpool_operator.api.rules import INT_OR_STRING, Rule, Wire, shared
from llmtaskpool_operator.api.schedule import CRON_PATTERN, problem_of

ALPHA_PATTERN = r"^(Auto|[0-9]{1,6}(\.[0-9]{1,6})?)$"


class ScalingMode(StrEnum):
    """Who decides about replicas."""

    AUTO = "Auto"
    EXTERNAL = "External"
    FIXED = "Fixed"
    ADVISE = "Advise"


class Metric(StrEnum):
    """What utilization is made of."""

    OFFERED_WORK = "OfferedWork"
    THREAD_UTILIZATION = "ThreadUtilization"
    GPU_UTILIZATION = "GPUUtilization"


class StepLimitPolicy(Wire):
    """One limit of the size of changes."""

    type: Literal["Pods", "Percent"]
    """Pods: `value` is a number of replicas. Percent: it is a share of the replicas there were
    at the beginning of the period."""
    value: Annotated[int, Field(ge=1, le=100_000)]
    """The most change within `periodSeconds`."""
    period_seconds: Annotated[int, Field(ge=1, le=1800)]
    """The period that the limit is for, in seconds."""


class ScalingRules(Wire):
    """What changes in one direction have to wait for, and how large they may be."""

    stabilization_window_seconds: Annotated[int, Field(ge=0, le=3600)] | None = None
    """A fall goes no lower than the most that was wanted within this time, a rise no higher than
    the least. Default: 0 up, 400 down."""
    policies: Annotated[
        list[StepLimitPolicy],
        Field(max_length=8, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = Field(default_factory=list)
    """Limits of the step size; none: unlimited."""
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"
    """Which of several limits holds: the one that allows most, or least; Disabled forbids
    changes in this direction."""


class Behavior(Wire):
    """Waiting and step limits per direction, in the words of HorizontalPodAutoscaler."""

    scale_up: ScalingRules = Field(default_factory=shared(ScalingRules()))
    """Growing. Default: at once, unlimited."""
    scale_down: ScalingRules = Field(default_factory=shared(ScalingRules()))
    """Shrinking. Default: after 400 s, unlimited."""


class MinimumSchedule(Wire):
    """A minimum of replicas for some hours, as of KEDA's cron scaler."""

    start: Annotated[str, Field(min_length=9, max_length=100, pattern=CRON_PATTERN)]
    """When it begins, as a cron expression of five fields: `0 8 * * 1-5`."""
    end: Annotated[str, Field(min_length=9, max_length=100, pattern=CRON_PATTERN)]
    """When it ends, in the same form."""
    time_zone: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_+/-]+$")] = (
        "UTC"
    )
    """Time zone of both, as in the IANA database: `Europe/Berlin`."""
    min_replicas: Annotated[int, Field(ge=1, le=10_000)]
    """The least replicas in between; `maxReplicas` holds all the same."""

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        problem = problem_of(self.start, self.end, self.time_zone)
        if problem is not None:
            raise PydanticCustomError("schedule", "{text}", {"text": problem})
        return self


class Scaling(Wire):
    """How the pool's replicas are decided: N_new = N + alpha (U - targetUtilization)."""

    mode: ScalingMode = ScalingMode.AUTO
    """Auto: the operator decides and `spec.replicas` is ignored. External: whoever writes
    `/scale` (HPA, KEDA, kubectl) decides, within the bounds; threads are still tuned. Fixed:
    `spec.replicas` holds. Advise: nothing is done, threads included; what would be stands in the
    message of the condition ScalingLimited, which `llmtaskpool explain` shows."""
    min_replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """The least replicas. 0 lets an idle pool sleep: the operator keeps a gate beside it, one small
    pod that holds requests until a worker is there again, in the modes Auto and External."""
    max_replicas: Annotated[int, Field(ge=1, le=10_000)] = 10
    """The most replicas, whatever the equation says."""
    schedules: Annotated[
        list[MinimumSchedule],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = Field(default_factory=list)
    """Higher minimums at known hours, so that pods are there before the work is."""
    target_utilization: Annotated[float, Field(ge=0.05, le=2)] = 0.9
    """Utilization to steer for: pod-seconds of work offered per second and replica. Use 0.8 when
    pods take 2 min or more to start, or when traffic is very bursty."""
    alpha: Annotated[
        str, Field(pattern=ALPHA_PATTERN, max_length=16, json_schema_extra=INT_OR_STRING)
    ] = "Auto"
    """Gain of the equation. Auto is N / targetUtilization, which reaches the target in one step at
    any size. A number (in quotes unless whole: "0.1") is the literal law, with its fraction
    carried; at 10 replicas it needs about "4" to be as fast."""
    tolerance: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    """By how many replicas the equation's value may be over a whole number before it is rounded
    up to the next."""
    metric: Metric = Metric.OFFERED_WORK
    """OfferedWork: work that arrives and waits, in pod-seconds per second; recommended.
    ThreadUtilization: threads in use and tasks queued over the threads of the pods.
    GPUUtilization: NVML's share of time in which any kernel ran; threads too grow only while
    their pod's GPU is under the target. It is near 1 at any load, cost 1.8 to 8.5 times the
    pod-hours of OfferedWork in our study, and keeps batches small."""
    averaging_seconds: Annotated[int, Field(ge=5, le=600)] = 30
    """The window over which the arrival rate is averaged, in seconds. Longer is calmer and
    slower."""
    backlog_drain_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    """T_d: the seconds within which waiting work should be worked off.
    Default: the larger of 60 s and 4 x `slo.ttftSeconds`."""
    behavior: Behavior = Field(default_factory=shared(Behavior()))
    """Stabilization windows and step limits."""
    drain_seconds: Annotated[int, Field(ge=0, le=86_400)] = 120
    """The seconds that a pod that is to go has for finishing what it accepted; what is left then
    is told that it failed."""
    paused: bool = False
    """True keeps the replicas as they are; threads are still tuned."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            "minReplicas",
            "scaling.minReplicas is greater than scaling.maxReplicas: "
            "lower minReplicas or raise maxReplicas",
            lambda s: s.min_replicas <= s.max_replicas,
        ),
    )

    @property
    def may_sleep(self) -> bool:
        """Whether it may have no worker, and somebody decides to make one again."""
        return self.min_replicas == 0 and self.mode in (ScalingMode.AUTO, ScalingMode.EXTERNAL)

    @field_validator("alpha", mode="before")
    @classmethod
    def _alpha_in_words(cls, value: object) -> object:
        """A bare number, which YAML gives, is the same as its text."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return f"{value:.6f}".rstrip("0").rstrip(".") if value == value else "NaN"
        return value
