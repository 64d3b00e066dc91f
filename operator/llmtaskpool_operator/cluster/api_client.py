"""The few requests that the operator makes of the API server, over ``kubernetes.aio``.

Manifests go and come as plain dicts. Every request is bounded in time, and every failure is an
ApiFailure with a code and one line; a write needs ``may_write`` at that moment (the fence).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from llmtaskpool_operator.api.names import GROUP, KIND, PLURAL, VERSION
from llmtaskpool_operator.cluster.manifests import Manifest

# It warns of what NoCluster tells.
logging.getLogger("kubernetes.aio.config.kube_config").setLevel(logging.ERROR)

MANAGER = "llmtaskpool"
REQUEST_SECONDS = 30.0
PAGE = 200
"""A list is taken in pages: whole ones of thousands of objects would be its peak of memory."""
_NOWHERE = "1"
"""A resource version that no object has: the first write of a new etcd makes 2."""
_APPLY = "application/apply-patch+yaml"
_JSON = "application/json"
_MERGE = "application/merge-patch+json"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_PATHS = {
    KIND: f"apis/{GROUP}/{VERSION}/{{}}/{PLURAL}",
    "Deployment": "apis/apps/v1/{}/deployments",
    "Pod": "api/v1/{}/pods",
    "Service": "api/v1/{}/services",
    "ServiceAccount": "api/v1/{}/serviceaccounts",
    "Secret": "api/v1/{}/secrets",
    "PersistentVolumeClaim": "api/v1/{}/persistentvolumeclaims",
    "NetworkPolicy": "apis/networking.k8s.io/v1/{}/networkpolicies",
    "PodDisruptionBudget": "apis/policy/v1/{}/poddisruptionbudgets",
    "Lease": "apis/coordination.k8s.io/v1/{}/leases",
    "Event": "apis/events.k8s.io/v1/{}/events",
}


class ApiFailure(Exception):
    """A request that failed. ``code`` 0: no answer. ``retry_after``: seconds the server asks."""

    def __init__(self, code: int, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.retry_after = retry_after


class Fenced(Exception):
    """A write that was not sent: this replica does not lead (any more)."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Objects of one kind and the resource version that the list is of."""

    items: tuple[Manifest, ...]
    version: str


class NoCluster(Exception):
    """There is no way to an API server; the message has the remedy."""


@asynccontextmanager
async def connected() -> AsyncIterator[ApiClient]:
    """A client with the pod's own rights, or outside a pod the kubeconfig's. Raises NoCluster."""
    configuration = Configuration()
    configuration.connection_pool_maxsize = 256
    # It reads .netrc in a thread at every request otherwise: a quarter of the processor time of
    # a thousand new pools. kopf's watches don't go by the environment's proxies either, and a
    # kubeconfig's proxy-url counts for both.
    configuration.client_session_kwargs = {"trust_env": False}
    try:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            await config.load_kube_config(  # which reads KUBECONFIG when it is imported
                config_file=os.environ.get("KUBECONFIG"), client_configuration=configuration
            )
    except Exception as error:  # an odd kubeconfig fails in the loader in many ways
        why = " ".join(str(error).split())[:300]
        raise NoCluster(f"no cluster: {why}: set KUBECONFIG, or run in a pod") from None
    async with ApiClient(configuration) as client:
        yield client


class KubernetesApi:
    """``failed(verb, code)`` is told of every failure; ``may_write`` is asked before each write."""

    def __init__(
        self,
        client: ApiClient,
        *,
        may_write: Callable[[], bool] = lambda: True,
        failed: Callable[[str, int], None] = lambda _verb, _code: None,
    ) -> None:
        self._client = client
        self._may_write = may_write
        self._failed = failed

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object, or None when there is none. Raises ApiFailure."""
        try:
            return await self._json("get", "GET", _path(kind, namespace, name))
        except ApiFailure as failure:
            if failure.code == 404:
                return None
            raise

    async def metadata(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object's metadata and nothing else, for who may write a kind and not read it.

        A dry run of an apply that asks for nothing: it needs the right to patch, changes nothing,
        and the server sends no value of the object. None when there is none. Fenced as a write,
        which it looks like to whoever audits. Raises ApiFailure, Fenced.
        """
        if not self._may_write():
            raise Fenced(f"look at {kind} {name}: this replica does not lead")
        body = {"kind": kind, "apiVersion": _version_of(kind), "metadata": {"name": name}}
        query = {"fieldManager": f"{MANAGER}-look", "force": "false", "dryRun": "All"}
        path = _path(kind, namespace, name)
        found = await self._json("patch", "PATCH", path, query, body, _APPLY, _METADATA)
        # What a dry run would have made has no resource version: nothing is there.
        return found if found.get("metadata", {}).get("resourceVersion") else None

    async def list(
        self,
        kind: str,
        namespace: str = "",
        selector: str = "",
        kept: Callable[[Manifest], Manifest] = lambda body: body,
        *,
        fields: str = "",
        whole: bool = True,
    ) -> Listed:
        """All objects of a kind in a namespace, or in all; of each what ``kept`` returns.

        ``selector`` is of labels, ``fields`` of fields; not ``whole``: their metadata alone.
        Raises ApiFailure.
        """
        items: list[Manifest] = []
        chosen = {"labelSelector": selector, "fieldSelector": fields}
        query = {"limit": str(PAGE)} | {name: text for name, text in chosen.items() if text}
        while True:
            accept = _JSON if whole else _METADATA_LIST
            page = await self._json("list", "GET", _path(kind, namespace), query, accept=accept)
            items += map(kept, page.get("items") or ())
            meta = page.get("metadata", {})
            if not meta.get("continue"):
                return Listed(tuple(items), str(meta.get("resourceVersion", "")))
            query["continue"] = meta["continue"]

    async def watch(
        self, kind: str, namespace: str, selector: str, version: str, seconds: int
    ) -> AsyncIterator[tuple[str, Manifest]]:
        """Events since ``version``, each its type and the metadata of its object, then bookmarks.

        Ends after about so many seconds. Raises ApiFailure, with code 410 for a version too old.
        """
        query = {
            "watch": "true",
            "labelSelector": selector,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        headers = {"Accept": _METADATA}
        call = await self._client.param_serialize(
            "GET", _path(kind, namespace), header_params=headers, auth_settings=["BearerToken"]
        )
        url, answer = f"{call[1]}?{urlencode(query)}", None
        try:
            async with asyncio.timeout(seconds + REQUEST_SECONDS):
                answer = await self._client.call_api("GET", url, call[2])
                if answer.status >= 400:
                    found = _parsed(await answer.read())
                    raise ApiFailure(answer.status, f"{answer.status}: {found.get('message', '')}")
                async for line in answer.response.content:
                    event = _parsed(line)
                    body = event.get("object") or {}
                    if event.get("type") == "ERROR":
                        code = int(body.get("code") or 0)
                        raise ApiFailure(code, f"{code}: {body.get('message', 'the watch ended')}")
                    yield str(event.get("type", "")), body
        except TimeoutError:
            raise ApiFailure(0, "a watch stood still") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiFailure(0, f"{type(error).__name__} on a watch of {kind}") from None
        finally:
            if answer is not None:
                answer.response.close()

    async def apply(
        self,
        manifest: Manifest,
        *,
        version: str | None = None,
        subresource: str = "",
        whole: bool = True,
    ) -> Manifest:
        """Server-side apply; the object as it is now, or if not ``whole`` its metadata alone.

        With ``version`` only while the object is of that resource version, or is not there.
        Raises ApiFailure, with code 409 when it is of another, and Fenced.
        """
        meta = manifest["metadata"]
        if version is not None:
            manifest = manifest | {"metadata": meta | {"resourceVersion": version}}
        path = _path(manifest["kind"], meta["namespace"], meta["name"], subresource)
        query = {"fieldManager": MANAGER, "force": "true"}
        accept = _JSON if whole else _METADATA
        return await self._write("patch", "PATCH", path, query, manifest, _APPLY, accept)

    async def make(self, manifest: Manifest, *, whole: bool = True) -> Manifest | None:
        """Apply an object that is not there; None, and nothing is written, when there is one.

        One request where a look and a write would be two, with time for somebody between them.
        Raises ApiFailure, Fenced.
        """
        try:
            return await self.apply(manifest, version=_NOWHERE, whole=whole)
        except ApiFailure as failure:
            # 409 is what 1.37 says; whatever a server finds wrong, a look and an apply tell it.
            if failure.code in (400, 409, 422):
                return None
            raise

    async def create(self, manifest: Manifest) -> Manifest:
        """Create an object; a 409 says that there is one. Raises ApiFailure, Fenced."""
        path = _path(manifest["kind"], manifest["metadata"]["namespace"])
        return await self._write("create", "POST", path, {"fieldManager": MANAGER}, manifest)

    async def replace(self, manifest: Manifest) -> Manifest:
        """Put an object in the place of the one of its resource version. Raises ApiFailure."""
        meta = manifest["metadata"]
        path = _path(manifest["kind"], meta["namespace"], meta["name"])
        return await self._write("update", "PUT", path, {"fieldManager": MANAGER}, manifest)

    async def merge(
        self, kind: str, namespace: str, name: str, patch: Manifest, *, subresource: str = ""
    ) -> Manifest:
        """Merge-patch an object. Raises ApiFailure, Fenced."""
        path = _path(kind, namespace, name, subresource)
        return await self._write("patch", "PATCH", path, {"fieldManager": MANAGER}, patch, _MERGE)

    async def served(self) -> bool:
        """Whether the server knows our custom resource. Raises ApiFailure."""
        try:
            found = await self._json("get", "GET", f"/apis/{GROUP}/{VERSION}")
        except ApiFailure as failure:
            if failure.code == 404:
                return False
            raise
        return any(resource.get("name") == PLURAL for resource in found.get("resources", ()))

    async def account(self, namespace: str) -> Manifest | None:
        """An ownerReference to the ServiceAccount of that namespace whose rights these are.

        None when they are a person's, or those of another namespace, where it could own nothing.
        Raises ApiFailure.
        """
        group = "authentication.k8s.io/v1"
        review = {"apiVersion": group, "kind": "SelfSubjectReview"}
        made = await self._json("create", "POST", f"/apis/{group}/selfsubjectreviews", body=review)
        user = made.get("status", {}).get("userInfo", {})
        of, _, name = str(user.get("username", "")).rpartition(":")
        if of != f"system:serviceaccount:{namespace}" or not user.get("uid"):
            return None
        return {"apiVersion": "v1", "kind": "ServiceAccount", "name": name, "uid": user["uid"]}

    async def _write(
        self,
        verb: str,
        method: str,
        path: str,
        query: dict[str, str],
        body: Manifest,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> Manifest:
        if not self._may_write():
            raise Fenced(f"{verb} {path}: this replica does not lead")
        return await self._json(verb, method, path, query, body, content_type, accept)

    async def _json(
        self,
        verb: str,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> Manifest:
        try:
            return await self._exchange(method, path, query, body, content_type, accept)
        except ApiFailure as failure:
            if failure.code != 404:
                self._failed(verb, failure.code)
            raise

    async def _exchange(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None,
        body: Manifest | None,
        content_type: str,
        accept: str,
    ) -> Manifest:
        headers = {"Content-Type": content_type, "Accept": accept}
        call = await self._client.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        method, url, headers, body = call[0], call[1], call[2], call[3]
        if query:
            url += f"?{urlencode(query)}"
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                answer = await self._client.call_api(method, url, headers, body)
                raw = await answer.read()
        except TimeoutError:
            raise ApiFailure(0, f"no answer within {REQUEST_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ApiFailure(0, f"{type(error).__name__} on {method} {path}") from None
        found = _parsed(raw)
        if answer.status >= 400:
            message = str(found.get("message") or answer.reason or "no reason given")[:500]
            after = _seconds(answer.headers.get("Retry-After"))
            raise ApiFailure(answer.status, f"{answer.status}: {message}", after)
        return found


def _path(kind: str, namespace: str, name: str = "", subresource: str = "") -> str:
    place = f"namespaces/{quote(namespace, safe='')}" if namespace else ""
    parts = ["", *_PATHS[kind].format(place).split("/"), quote(name, safe=""), subresource]
    return "/".join(part for i, part in enumerate(parts) if part or i == 0)


def _version_of(kind: str) -> str:
    """The apiVersion of a kind: its path up to the namespace, without its root."""
    return _PATHS[kind].split("/{}")[0].split("/", 1)[1]


def _parsed(raw: bytes) -> Manifest:
    try:
        found: Any = msgspec.json.decode(raw)
    except ValueError:
        return {"message": "the answer is no JSON"}
    return found if isinstance(found, dict) else {"message": "the answer is no object"}


def _seconds(text: str | None) -> float | None:
    try:
        return min(max(float(text), 0.0), 300.0) if text else None
    except ValueError:
        return None
