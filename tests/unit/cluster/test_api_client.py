"""The operator's requests of the API server, over a server that answers as the test says."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration
from llmtaskpool_operator.cluster.api_client import ApiFailure, Fenced, KubernetesApi

SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"namespace": "team", "name": "chat"},
    "spec": {"clusterIP": "None"},
}


def ask(call, status=200, body=None, *, may_write=True, headers=None):
    """What ``call`` returned, and the requests that the server got."""
    requests = []

    async def handler(request):
        requests.append((request.method, request.path, await request.json()))
        return web.json_response(body or {}, status=status, headers=headers)

    async def go():
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        async with TestServer(app) as server:
            configuration = Configuration(host=str(server.make_url("")).rstrip("/"))
            async with ApiClient(configuration) as client:
                return await call(KubernetesApi(client, may_write=lambda: may_write))

    return asyncio.run(go()), requests


def make(api):
    return api.make(SERVICE)


@pytest.mark.parametrize("status", [400, 409, 422])
def test_an_object_that_is_there_is_not_made_however_the_server_says_so(status):
    made, requests = ask(make, status)

    assert made is None
    assert [(method, path) for method, path, _ in requests] == [
        ("PATCH", "/api/v1/namespaces/team/services/chat")
    ]


def test_an_object_that_is_not_there_is_made_by_one_request_that_can_change_no_other():
    made, requests = ask(make, body=SERVICE)

    assert made == SERVICE
    [(_, _, sent)] = requests
    assert sent["metadata"]["resourceVersion"] == "1"
    assert sent["spec"] == SERVICE["spec"]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_server_that_can_not_make_an_object_is_a_failure_with_its_code(status):
    with pytest.raises(ApiFailure) as raised:
        ask(make, status, {"message": "no"})

    assert raised.value.code == status


def test_how_long_a_busy_server_asks_to_wait_is_told():
    with pytest.raises(ApiFailure) as raised:
        ask(make, 429, {"message": "busy"}, headers={"Retry-After": "7"})

    assert raised.value.retry_after == 7


def test_who_does_not_lead_writes_nothing():
    async def call(api):
        with pytest.raises(Fenced):
            await make(api)

    _, sent = ask(call, may_write=False)

    assert sent == []


def watched(lines, status=200):
    """The events that a watch gave, and the server's view of the request."""
    asked = []

    async def handler(request):
        asked.append(dict(request.query) | {"path": request.path, "as": request.headers["Accept"]})
        if status != 200:
            return web.json_response({"message": "no"}, status=status)
        answer = web.StreamResponse()
        await answer.prepare(request)
        for line in lines:
            await answer.write(json.dumps(line).encode() + b"\n")
        return answer

    async def go():
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        async with TestServer(app) as server:
            configuration = Configuration(host=str(server.make_url("")).rstrip("/"))
            async with ApiClient(configuration) as client:
                api = KubernetesApi(client)
                watch = api.watch("Service", "team", "llmtaskpool.io/pool", "7", 5)
                return [event async for event in watch]

    return asyncio.run(go()), asked


def test_a_watch_asks_for_metadata_since_a_version_and_gives_each_event():
    event = {"type": "DELETED", "object": {"metadata": {"name": "chat"}}}
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}
    events, [asked] = watched([event, bookmark])

    assert events == [("DELETED", event["object"]), ("BOOKMARK", bookmark["object"])]
    assert asked["path"] == "/api/v1/namespaces/team/services"
    assert "PartialObjectMetadata" in asked["as"]
    assert (asked["watch"], asked["resourceVersion"]) == ("true", "7")
    assert (asked["labelSelector"], asked["timeoutSeconds"]) == ("llmtaskpool.io/pool", "5")


def test_a_watch_of_a_version_too_old_and_one_that_is_forbidden_fail_with_their_code():
    expired = {"type": "ERROR", "object": {"code": 410, "message": "too old"}}
    for lines, status, code in (([expired], 200, 410), ([], 403, 403), ([], 410, 410)):
        with pytest.raises(ApiFailure) as raised:
            watched(lines, status)
        assert raised.value.code == code
