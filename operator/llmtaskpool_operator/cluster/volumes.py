"""What a worker's container sees of files: caches, secrets, models from images. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmtaskpool_operator.api.models import SecretKey
from llmtaskpool_operator.api.pool import LLMTaskPool, LLMTaskPoolSpec
from llmtaskpool_operator.api.quantities import number
from llmtaskpool_operator.cluster.identity import Manifest, claim_name, token_name

CACHE = "/var/cache/llmtaskpool"
_RUN = "/run/llmtaskpool"
_MODELS = "/models"


@dataclass(slots=True)
class Mounted:
    """Volumes of the pod, their mounts in the worker, and the variables that name files there.

    ``spec`` is the pool's with the sources of its models as the worker sees them.
    """

    spec: LLMTaskPoolSpec
    volumes: list[Manifest] = field(default_factory=list)
    mounts: list[Manifest] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, volume: Manifest, path: str, *, read_only: bool = False) -> None:
        """A volume and where it is seen."""
        self.volumes.append({"name": name, **volume})
        mount: Manifest = {"name": name, "mountPath": path}
        self.mounts.append(mount | {"readOnly": True} if read_only else mount)


def mounted(pool: LLMTaskPool) -> Mounted:
    """All of them."""
    spec = pool.spec
    # The group that reads files of Secrets is ours; a platform's ids may have another.
    mode = 0o444 if spec.user.by_platform else 0o440
    held = Mounted(spec)
    held.add("cache", _cache(pool), CACHE)
    held.add("tmp", {"emptyDir": {}}, "/tmp")  # noqa: S108  the pod's own
    token = {"secretName": token_name(pool), "defaultMode": mode}
    held.add("token", {"secret": token}, f"{_RUN}/token", read_only=True)
    held.environment["LLMTASKPOOL_CONTROL_TOKENS_FILE"] = f"{_RUN}/token/token"
    if (keys := spec.auth.api_key_secret_ref) is not None:
        items = [{"key": keys.key, "path": "keys"}]
        secret = {"secretName": keys.name, "items": items, "defaultMode": mode}
        held.add("keys", {"secret": secret}, f"{_RUN}/keys", read_only=True)
        held.environment["LLMTASKPOOL_API_KEYS_FILE"] = f"{_RUN}/keys/keys"
    _add_tenants(held, mode)
    _add_hub_tokens(held, mode)
    _add_queue(held, pool, mode)
    if (bundle := spec.trusted_ca_ref) is not None:
        config = {"name": bundle.name, "items": [{"key": bundle.key, "path": "ca.crt"}]}
        held.add("trusted-ca", {"configMap": config}, f"{_RUN}/ca", read_only=True)
        held.environment["LLMTASKPOOL_TRUSTED_CA_FILE"] = f"{_RUN}/ca/ca.crt"
    if spec.shared_memory is not None:
        memory = {"medium": "Memory", "sizeLimit": spec.shared_memory}
        held.add("shm", {"emptyDir": memory}, "/dev/shm")  # noqa: S108  the pod's own
    limit = None if spec.cache.empty_dir is None else spec.cache.empty_dir.size_limit
    if limit is not None and (size := number(limit)) is not None:
        held.environment["LLMTASKPOOL_CACHE_BYTES"] = str(int(size))
    _add_images(held)
    return held


_GATES = ("tmp", "token", "keys", "tenants", "queue", "trusted-ca")
"""What a gate has of them: no caches, no models, no tokens of a hub."""
_GATES_FILES = (
    "LLMTASKPOOL_CONTROL_TOKENS_FILE",
    "LLMTASKPOOL_API_KEYS_FILE",
    "LLMTASKPOOL_TENANT_KEYS_DIR",
    "LLMTASKPOOL_QUEUE_FILE",
    "LLMTASKPOOL_QUEUE_POOL",
    "LLMTASKPOOL_QUEUE_ALLOW_VOLATILE",
    "LLMTASKPOOL_TRUSTED_CA_FILE",
)


def mounted_by_gate(pool: LLMTaskPool) -> Mounted:
    """Those that a pool's gate has."""
    held = mounted(pool)
    files = {name: held.environment[name] for name in _GATES_FILES if name in held.environment}
    return Mounted(
        held.spec,
        [one for one in held.volumes if one["name"] in _GATES],
        [one for one in held.mounts if one["name"] in _GATES],
        files,
    )


def _cache(pool: LLMTaskPool) -> Manifest:
    cache = pool.spec.cache
    name = claim_name(pool) if cache.claim_template is not None else cache.claim_name
    if name is not None:
        return {"persistentVolumeClaim": {"claimName": name}}
    given = {} if cache.empty_dir is None else cache.empty_dir.wire()
    return {"emptyDir": {key: value for key, value in given.items() if value != ""}}


def _add_tenants(held: Mounted, mode: int) -> None:
    """The keys of tenants with names, in files of these names that follow their Secrets."""
    named = held.spec.tenants.named
    if named:
        sources = [_projected(one.api_key_secret_ref, one.name) for one in named]
        projected = {"sources": sources, "defaultMode": mode}
        held.add("tenants", {"projected": projected}, f"{_RUN}/tenants", read_only=True)
        held.environment["LLMTASKPOOL_TENANT_KEYS_DIR"] = f"{_RUN}/tenants"


def _add_hub_tokens(held: Mounted, mode: int) -> None:
    """The pool's token, and those of single models, as files that follow their Secrets."""
    sources: list[Manifest] = []
    if held.spec.token_secret_ref is not None:
        sources.append(_projected(held.spec.token_secret_ref, "pool"))
        held.environment["LLMTASKPOOL_HUB_TOKEN_FILE"] = f"{_RUN}/hub/pool"
    own = [model for model in held.spec.models if model.token_secret_ref is not None]
    for model in own:
        assert model.token_secret_ref is not None  # noqa: S101  for mypy
        path = f"models/{model.name.replace('/', '%2F')}"
        sources.append(_projected(model.token_secret_ref, path))
    if own:
        held.environment["LLMTASKPOOL_HUB_TOKENS_DIR"] = f"{_RUN}/hub/models"
    if sources:
        projected = {"sources": sources, "defaultMode": mode}
        held.add("hub-tokens", {"projected": projected}, f"{_RUN}/hub", read_only=True)


def _add_queue(held: Mounted, pool: LLMTaskPool, mode: int) -> None:
    """The URL of the server whose line the pool's workers share, which may hold a password."""
    if (redis := held.spec.queue.redis) is None:
        return
    ref, meta = redis.secret_ref, pool.metadata
    items = [{"key": ref.key, "path": "url"}]
    secret = {"secretName": ref.name, "items": items, "defaultMode": mode}
    held.add("queue", {"secret": secret}, f"{_RUN}/queue", read_only=True)
    held.environment["LLMTASKPOOL_QUEUE_FILE"] = f"{_RUN}/queue/url"
    held.environment["LLMTASKPOOL_QUEUE_POOL"] = f"{meta.namespace}/{meta.name}"
    if redis.allow_volatile:
        held.environment["LLMTASKPOOL_QUEUE_ALLOW_VOLATILE"] = "true"


def _projected(ref: SecretKey, path: str) -> Manifest:
    return {"secret": {"name": ref.name, "items": [{"key": ref.key, "path": path}]}}


def _add_images(held: Mounted) -> None:
    """A volume for each model whose source is an image."""
    models = []
    for number_, model in enumerate(held.spec.models):
        if (image := model.image()) is None:
            models.append(model)
            continue
        reference, folder = image
        path = f"{_MODELS}/{number_}"
        volume = {"image": {"reference": reference, "pullPolicy": "IfNotPresent"}}
        held.add(f"model-{number_}", volume, path, read_only=True)
        inside = f"{path}/{folder}" if folder else path
        models.append(model.model_copy(update={"source": inside}))
    held.spec = held.spec.model_copy(update={"models": models})
