"""`spec.service`: how clients reach the pool. Pure.

What would lead traffic elsewhere (ExternalName, externalIPs, a selector) can't be said.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmtaskpool_operator.api.labels import KEY, Annotations, OwnLabels
from llmtaskpool_operator.api.placement import ATOMIC
from llmtaskpool_operator.api.rules import Rule, Wire, list_map

_CIDR = r"^([0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2}|[0-9a-fA-F:.]{2,45}/[0-9]{1,3})$"


class ServicePort(Wire):
    """One port of the Service; it leads to the workers' data port."""

    name: Annotated[
        str, Field(min_length=1, max_length=15, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    ] = "http"
    """Name of the port."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 80
    """Number of the port."""
    node_port: Annotated[int, Field(ge=1, le=65_535)] | None = None
    """The port of every node, for NodePort and LoadBalancer; none: the cluster chooses."""


class Service(Wire):
    """The pool's Service."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    """ClusterIP: within the cluster. NodePort, LoadBalancer: from outside, so set
    `auth.apiKeySecretRef`."""
    ports: Annotated[
        list[ServicePort], Field(min_length=1, max_length=8, json_schema_extra=list_map("name"))
    ] = Field(default_factory=lambda: [ServicePort()])
    """Its ports. Default: 80, called http."""
    annotations: Annotations = Field(default_factory=dict)
    """Annotations, such as a cloud's for its load balancer."""
    labels: OwnLabels = Field(default_factory=dict)
    """More labels of it."""
    load_balancer_class: Annotated[str, Field(min_length=1, max_length=317, pattern=KEY)] | None = (
        None
    )
    """Which implementation makes the load balancer; it can't be changed later."""
    load_balancer_source_ranges: Annotated[
        list[Annotated[str, Field(max_length=49, pattern=_CIDR)]],
        Field(max_length=32, json_schema_extra=ATOMIC),
    ] = Field(default_factory=list)
    """Networks whose clients the load balancer lets in, such as `10.0.0.0/8`; none: all."""
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] | None = None
    """IPv4 and IPv6; none: as the cluster has it."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.type == 'LoadBalancer' || (!has(self.loadBalancerClass) && "
            "(!has(self.loadBalancerSourceRanges) || self.loadBalancerSourceRanges.size() == 0))",
            "loadBalancerClass",
            "loadBalancerClass and loadBalancerSourceRanges are for type LoadBalancer: set the "
            "type, or remove them",
            lambda s: (
                s.type == "LoadBalancer"
                or (s.load_balancer_class is None and not s.load_balancer_source_ranges)
            ),
        ),
        Rule(
            "self.type != 'ClusterIP' || !has(self.ports) || "
            "self.ports.all(port, !has(port.nodePort))",
            "ports",
            "a nodePort is for type NodePort or LoadBalancer: set the type, or remove nodePort",
            lambda s: s.type != "ClusterIP" or all(port.node_port is None for port in s.ports),
        ),
        Rule(
            "!has(self.ports) || self.ports.all(one, "
            "self.ports.filter(other, other.port == one.port).size() == 1)",
            "ports",
            "two ports of service.ports have the same number: give each its own",
            lambda s: len({port.port for port in s.ports}) == len(s.ports),
        ),
    )
