"""`spec.upstream`: a server beside each worker, which the pool's models of `openai:` ask. Pure.

It becomes a native sidecar: an init container that Kubernetes restarts, starts before the worker
and ends after it, so that the worker's drain ends first.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from llmtaskpool_worker.contract import CONTROL_PORT, DATA_PORT
from pydantic import Field

from llmtaskpool_operator.api.environment import EnvFrom, EnvSource
from llmtaskpool_operator.api.pods import PullPolicy
from llmtaskpool_operator.api.resources import Resources
from llmtaskpool_operator.api.rules import Rule, Wire, list_map, shared

ATOMIC = {"x-kubernetes-list-type": "atomic"}
_PATH = r"^/[^\s]*$"
Path = Annotated[str, Field(min_length=1, max_length=1024, pattern=_PATH)]
Argument = Annotated[str, Field(max_length=4096)]


class UpstreamVariable(Wire):
    """One variable of the server's environment."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Its name, such as `HF_TOKEN` or `VLLM_LOGGING_LEVEL`."""
    value: Annotated[str, Field(max_length=8192)] | None = None
    """Its value, as it is: nothing in it is replaced."""
    value_from: EnvSource | None = None
    """Where its value comes from."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(has(self.value) && has(self.valueFrom))",
            "value",
            "a variable has value or valueFrom: remove one",
            lambda e: e.value is None or e.value_from is None,
        ),
    )


class UpstreamMount(Wire):
    """Where the server sees one of the pool's volumes."""

    name: Literal["cache"] = "cache"
    """The volume: `cache`, which `spec.cache` describes and the worker has too."""
    mount_path: Path
    """Where in the server's container, such as `/root/.cache/huggingface`."""
    sub_path: Annotated[str, Field(max_length=1024, pattern=r"^([^/.][^:]*)?$")] = ""
    """A folder of the volume, instead of all of it."""
    read_only: bool = False
    """True: the server can't write there."""


class UpstreamSecurity(Wire):
    """What the server's container may do; without these, what Pod Security *restricted* lets it."""

    run_as_user: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = None
    """User id of the server; none: the pod's, which is not root."""
    run_as_group: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = None
    """Group id of the server; none: the pod's."""
    read_only_root_filesystem: bool = False
    """True: the server can write to `/tmp` and its mounts alone."""
    allow_root: bool = False
    """True: the server may run as root, and does unless `runAsUser` is set: for an image that can't
    run as anybody else. The pods then need a namespace that enforces no more than Pod Security
    *baseline*; the worker stays as it is."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.runAsUser) || self.runAsUser != 0 || "
            "(has(self.allowRoot) && self.allowRoot)",
            "runAsUser",
            "runAsUser 0 is root, which Pod Security restricted refuses: choose another id, or set "
            "allowRoot and use a namespace that enforces baseline",
            lambda s: s.run_as_user != 0 or s.allow_root,
        ),
    )


class Upstream(Wire):
    """A server beside each worker: vLLM, SGLang, llama.cpp or another that speaks OpenAI's API."""

    image: Annotated[str, Field(min_length=1, max_length=512)]
    """Image of the server; pin its version."""
    image_pull_policy: PullPolicy | None = None
    """When a node pulls the image. Default: IfNotPresent."""
    command: Annotated[list[Argument], Field(max_length=16, json_schema_extra=ATOMIC)] = Field(
        default_factory=list
    )
    """What is run in place of the image's entrypoint. No shell runs it."""
    args: Annotated[list[Argument], Field(max_length=128, json_schema_extra=ATOMIC)] = Field(
        default_factory=list
    )
    """Its arguments. It must listen on `port` of all addresses of the pod, for the kubelet's
    probes; the pool's NetworkPolicy keeps all others away."""
    env: Annotated[
        list[UpstreamVariable], Field(max_length=64, json_schema_extra=list_map("name"))
    ] = Field(default_factory=list)
    """Variables of its environment. `HOME` is `/tmp` unless it is set here."""
    env_from: Annotated[list[EnvFrom], Field(max_length=16, json_schema_extra=ATOMIC)] = Field(
        default_factory=list
    )
    """Variables from whole Secrets and ConfigMaps."""
    port: Annotated[int, Field(ge=1024, le=65_535)] = 8002
    """The port that it listens on, and that models name: `openai:http://127.0.0.1:8002/v1`."""
    ready_path: Path = "/health"
    """Asked until it answers with 200 before the worker starts: `/ready` of SGLang, whose `/health`
    draws a token."""
    live_path: Path = "/health"
    """Asked every 10 seconds afterwards; when it fails for a minute the server is started again."""
    startup_seconds: Annotated[int, Field(ge=10, le=86_400)] = 1800
    """How long it may take to be ready: pulling and loading weights."""
    resources: Resources = Field(default_factory=shared(Resources()))
    """What it asks for; `nvidia.com/gpu` goes here, and not into the pool's own `resources`."""
    volume_mounts: Annotated[
        list[UpstreamMount], Field(max_length=8, json_schema_extra=list_map("mountPath"))
    ] = Field(default_factory=list)
    """Where it sees the pool's volumes. `/dev/shm` is there when `spec.sharedMemory` is set."""
    security_context: UpstreamSecurity = Field(default_factory=shared(UpstreamSecurity()))
    """What its container may do."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"!has(self.port) || (self.port != {DATA_PORT} && self.port != {CONTROL_PORT})",
            "port",
            f"upstream.port is a port of the worker ({DATA_PORT}, {CONTROL_PORT}): use another, "
            "such as 8002, in args too",
            lambda u: u.port not in (DATA_PORT, CONTROL_PORT),
        ),
    )
