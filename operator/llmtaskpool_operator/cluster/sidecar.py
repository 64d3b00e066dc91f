"""The server beside a worker as a native sidecar (KEP 753): up before it, down after it. Pure."""

from __future__ import annotations

from math import ceil

from llmtaskpool_operator.api.upstream import Upstream
from llmtaskpool_operator.cluster.identity import Manifest

SIDECAR = "upstream"
PORT = "upstream"
_TMP = "upstream-tmp"
_START_PERIOD, _LIVE_PERIOD, _LIVE_FAILURES = 5, 10, 6


def sidecar(upstream: Upstream, *, shared_memory: bool) -> Manifest:
    """The init container. ``shared_memory``: the pod has a volume for /dev/shm."""
    mounts = [_mount(one.wire()) for one in upstream.volume_mounts]
    mounts.append({"name": _TMP, "mountPath": "/tmp"})  # noqa: S108  its own
    if shared_memory:
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108  the pod's own
    made: Manifest = {
        "name": SIDECAR,
        "image": upstream.image,
        "imagePullPolicy": upstream.image_pull_policy or "IfNotPresent",
        "restartPolicy": "Always",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "env": _environment(upstream),
        "ports": [{"name": PORT, "containerPort": upstream.port, "protocol": "TCP"}],
        "securityContext": _security(upstream),
        # The worker's container starts when this has succeeded once.
        "startupProbe": _probe(
            upstream.ready_path, _START_PERIOD, ceil(upstream.startup_seconds / _START_PERIOD)
        ),
        "livenessProbe": _probe(upstream.live_path, _LIVE_PERIOD, _LIVE_FAILURES),
        "volumeMounts": mounts,
    }
    # Kubernetes puts variables in the place of $(NAME); $$ stays a $.
    for name, words in (("command", upstream.command), ("args", upstream.args)):
        if words:
            made[name] = [word.replace("$", "$$") for word in words]
    if upstream.env_from:
        made["envFrom"] = [one.wire() for one in upstream.env_from]
    resources = {key: value for key, value in upstream.resources.wire().items() if value}
    if resources:
        made["resources"] = resources
    return made


def sidecar_volumes() -> list[Manifest]:
    """What the pod has for it alone."""
    return [{"name": _TMP, "emptyDir": {}}]


def _mount(given: Manifest) -> Manifest:
    return {name: value for name, value in given.items() if value not in ("", False)}


def _environment(upstream: Upstream) -> list[Manifest]:
    given = []
    for one in upstream.env:
        variable: Manifest = one.wire()
        if "value" in variable:
            variable["value"] = variable["value"].replace("$", "$$")
        given.append(variable)
    if all(one["name"] != "HOME" for one in given):
        given.append({"name": "HOME", "value": "/tmp"})  # noqa: S108  its own
    return given


def _security(upstream: Upstream) -> Manifest:
    chosen = upstream.security_context
    made: Manifest = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": chosen.read_only_root_filesystem,
    }
    if chosen.allow_root:
        made["runAsNonRoot"] = False
        made["runAsUser"] = 0
    if chosen.run_as_user is not None:
        made["runAsUser"] = chosen.run_as_user
    if chosen.run_as_group is not None:
        made["runAsGroup"] = chosen.run_as_group
    return made


def _probe(path: str, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": PORT},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }
