"""Where pods may run, as in a Pod: tolerations, affinity, spreading. Pure.

Types and rules are those of k8s.io/api/core/v1 and of Kubernetes' own validation, so that what
its API server would refuse of a pod is refused of the pool.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtaskpool_operator.api.labels import KEY, LabelKey, Labels, LabelValue
from llmtaskpool_operator.api.rules import DNS_LABEL, Rule, Wire

ATOMIC = {"x-kubernetes-list-type": "atomic"}
_Values = Annotated[
    list[Annotated[str, Field(max_length=63)]], Field(max_length=64, json_schema_extra=ATOMIC)
]
_Namespaces = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]],
    Field(max_length=16, json_schema_extra=ATOMIC),
]
_Keys = Annotated[list[LabelKey], Field(max_length=8, json_schema_extra=ATOMIC)]
_Weight = Annotated[int, Field(ge=1, le=100)]


class Toleration(Wire):
    """One toleration, as in a Pod."""

    key: Annotated[str, Field(max_length=317, pattern=f"^$|{KEY}")] | None = None
    """Key of the taint; none with `operator: Exists` tolerates all."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Equal: `value` must be the taint's. Exists: the key is enough."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; none matches all."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = None
    """How long NoExecute is tolerated; none: for ever."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "(has(self.key) && self.key != '') || self.operator == 'Exists'",
            "operator",
            "a toleration without key tolerates every taint: set operator to Exists, or name a key",
            lambda t: bool(t.key) or t.operator == "Exists",
        ),
        Rule(
            "self.operator != 'Exists' || !has(self.value) || self.value == ''",
            "value",
            "a toleration with operator Exists has no value: remove value, or use Equal",
            lambda t: t.operator != "Exists" or not t.value,
        ),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds",
            "tolerationSeconds is for the effect NoExecute: set effect to it, or remove them",
            lambda t: t.toleration_seconds is None or t.effect == "NoExecute",
        ),
    )


def _fits(requirement: LabelRequirement | NodeRequirement) -> bool:
    size = len(requirement.values or ())
    if requirement.operator in ("In", "NotIn"):
        return size > 0
    return size == (1 if requirement.operator in ("Gt", "Lt") else 0)


_IN = "self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : "
_NO_VALUES = "!has(self.values) || self.values.size() == 0"


class LabelRequirement(Wire):
    """What a label must be, as in a label selector."""

    key: LabelKey
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How `values` are compared."""
    values: _Values | None = None
    """One or more for In and NotIn, none otherwise."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"{_IN}{_NO_VALUES}",
            "values",
            "In and NotIn need values, Exists and DoesNotExist have none: mend values or operator",
            _fits,
        ),
    )


class NodeRequirement(Wire):
    """What a label of a node must be."""

    key: LabelKey
    """Key of the label; in `matchFields` only `metadata.name`."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How `values` are compared."""
    values: _Values | None = None
    """One or more for In and NotIn, one whole number for Gt and Lt, none otherwise."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"{_IN}self.operator in ['Gt', 'Lt'] ? has(self.values) && self.values.size() == 1 : "
            f"{_NO_VALUES}",
            "values",
            "In and NotIn need values, Gt and Lt one, Exists and DoesNotExist none: mend values or "
            "operator",
            _fits,
        ),
    )


_NodeRequirements = Annotated[list[NodeRequirement], Field(max_length=16, json_schema_extra=ATOMIC)]


class NodeTerm(Wire):
    """Requirements of a node, of which all must hold."""

    match_expressions: _NodeRequirements | None = None
    """By labels of the node."""
    match_fields: _NodeRequirements | None = None
    """By fields of the node: `metadata.name`."""


class NodeChoice(Wire):
    """Nodes that pods may run on."""

    node_selector_terms: Annotated[
        list[NodeTerm], Field(min_length=1, max_length=8, json_schema_extra=ATOMIC)
    ]
    """Terms of which one must hold."""


class PreferredNode(Wire):
    """Nodes that are liked better."""

    weight: _Weight
    """How much, from 1 to 100."""
    preference: NodeTerm
    """Which nodes these are."""


class NodeAffinity(Wire):
    """Nodes that pods must or should run on."""

    required_during_scheduling_ignored_during_execution: NodeChoice | None = None
    """What must hold."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredNode], Field(max_length=8, json_schema_extra=ATOMIC)] | None
    ) = None
    """What should hold."""


class LabelSelector(Wire):
    """Objects by their labels; empty: all."""

    match_labels: Labels | None = None
    """Labels that they must have."""
    match_expressions: (
        Annotated[list[LabelRequirement], Field(max_length=8, json_schema_extra=ATOMIC)] | None
    ) = None
    """What else must hold of their labels."""


class PodTerm(Wire):
    """Pods that this is about, and how near is near."""

    label_selector: LabelSelector | None = None
    """Which pods; none: no pod."""
    namespaces: _Namespaces | None = None
    """Namespaces of those pods; none: the pool's own."""
    namespace_selector: LabelSelector | None = None
    """The same by labels."""
    topology_key: LabelKey
    """Label of nodes: those with the same value are the same place, as `kubernetes.io/hostname`."""
    match_label_keys: _Keys | None = None
    """Labels of the pool's pod whose values must be the same there."""
    mismatch_label_keys: _Keys | None = None
    """Labels of the pool's pod whose values must not be the same there."""


class PreferredPods(Wire):
    """Places that are liked better."""

    weight: _Weight
    """How much, from 1 to 100."""
    pod_affinity_term: PodTerm
    """Near, or far from, which pods."""


_Terms = Annotated[list[PodTerm], Field(max_length=8, json_schema_extra=ATOMIC)]
_Preferred = Annotated[list[PreferredPods], Field(max_length=8, json_schema_extra=ATOMIC)]


class PodAffinity(Wire):
    """Pods to be near to, or far from."""

    required_during_scheduling_ignored_during_execution: _Terms | None = None
    """What must hold."""
    preferred_during_scheduling_ignored_during_execution: _Preferred | None = None
    """What should hold."""


class Affinity(Wire):
    """Where pods must or should run, as in a Pod."""

    node_affinity: NodeAffinity | None = None
    """On which nodes."""
    pod_affinity: PodAffinity | None = None
    """Near to which pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Far from which pods."""


class TopologySpread(Wire):
    """How pods of the pool spread over places, as in a Pod."""

    max_skew: Annotated[int, Field(ge=1, le=10_000)] = 1
    """By how many pods two places may differ."""
    topology_key: LabelKey
    """Label of nodes: those with the same value are one place."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = "ScheduleAnyway"
    """What happens to a pod where it can't hold."""
    min_domains: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """The least places; only with DoNotSchedule."""
    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    """Whether `affinity` and `nodeSelector` say which nodes count. Default: Honor."""
    node_taints_policy: Literal["Honor", "Ignore"] | None = None
    """Whether nodes with taints that aren't tolerated count. Default: Ignore."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.minDomains) || self.whenUnsatisfiable == 'DoNotSchedule'",
            "minDomains",
            "minDomains is for whenUnsatisfiable DoNotSchedule: set that, or remove minDomains",
            lambda t: t.min_domains is None or t.when_unsatisfiable == "DoNotSchedule",
        ),
    )
