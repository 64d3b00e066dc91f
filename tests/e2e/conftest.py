"""A real node with real containers, and our own images on it (docs/rig.md, docs/images.md).

Needs root. The cluster is chosen in this order, and the choice is printed above the tests:

1. `LLMTASKPOOL_TEST_KUBECONFIG`: a cluster of yours, which has the images;
2. kind, when a Docker runs and kind is on PATH or built;
3. the rig.

`make kind-test` runs them on kind where no Docker runs: it starts one, and names the cluster as 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest
import yaml
from kindrig import choice
from kindrig.choice import Where

ROOT = Path(__file__).parents[2]
RIG = [sys.executable, str(ROOT / "hack" / "cluster")]
KIND = [sys.executable, str(ROOT / "hack" / "kind")]
IMAGES = [sys.executable, str(ROOT / "hack" / "images")]
Found = TypeVar("Found")


def run(*command: str, stdin: str | None = None, **environment: str) -> str:
    """A program's output; its errors are in the failure."""
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def wait_for(what: str, look: Callable[[], Found], within: float) -> Found:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {within:.0f} s: {what}")


BUSY_SECONDS = 120.0
"""How long a server may be too busy: two cores have the node, its pods and sixteen clients."""
NEVER_HEARD = ("net/http: TLS handshake timeout", "was refused - did you specify the right host")
MAYBE_HEARD = ("Unable to connect to the server", "error from a previous attempt")


@dataclass(frozen=True, slots=True)
class Node:
    """A cluster with one node."""

    kubeconfig: str
    programs: dict[str, str]

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What it says. A server that is too busy to hear it is told again."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return run(
                    self.programs["kubectl"], *arguments, stdin=stdin, KUBECONFIG=self.kubeconfig
                )
            except AssertionError as error:
                if time.monotonic() > deadline or not _again(arguments[0], str(error)):
                    raise
            time.sleep(1)

    def helm(self, *arguments: str) -> str:
        return run(self.programs["helm"], *arguments, KUBECONFIG=self.kubeconfig)

    def get(self, *arguments: str) -> dict[str, Any]:
        """What is there."""
        found = self.kubectl("get", *arguments, "--ignore-not-found", "-o", "json")
        return json.loads(found) if found.strip() else {}


def _again(verb: str, told: str) -> bool:
    """Whether a command that failed may be said again: it was not heard, or changes nothing."""
    if verb == "get":
        return any(one in told for one in NEVER_HEARD + MAYBE_HEARD)
    return any(one in told for one in NEVER_HEARD) and MAYBE_HEARD[1] not in told


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    chosen = choice.chosen()
    only = ("--only", "kubectl", "--only", "helm") if chosen.where is not Where.RIG else ()
    programs = json.loads(run(*RIG, "build", *only, "--output", "json"))
    if chosen.kubeconfig is not None:
        yield Node(str(chosen.kubeconfig), programs)
        return
    assert os.geteuid() == 0, "tests/e2e run containers: run them as root, or name a cluster"
    cluster, loader = (KIND, KIND) if chosen.where is Where.KIND else (RIG, IMAGES)
    state = str(tmp_path_factory.mktemp("node") / "state")
    made = json.loads(run(*cluster, "up", "--state", state, "--output", "json"))
    try:
        run(*loader, "load", "operator", "worker", "--models", "--state", state)
        yield Node(made["kubeconfig"], programs)
    finally:
        run(*cluster, "down", "--state", state)


SYSTEM, TEAM = "llmtaskpool-system", "team-a"
READY_SECONDS = 300.0
"""The first start of a pod converts the weights; two cores do that and everything else."""
KINDS = (
    "deployments,pods,services,serviceaccounts,secrets,configmaps,networkpolicies,"
    "poddisruptionbudgets,roles,rolebindings,leases"
)
CLUSTER_KINDS = "clusterroles,clusterrolebindings,crds"


@pytest.fixture
def team(node: Node) -> Iterator[str]:
    node.kubectl("create", "namespace", TEAM)
    node.kubectl("label", "namespace", TEAM, "pod-security.kubernetes.io/enforce=restricted")
    yield TEAM
    node.kubectl("delete", "namespace", TEAM, "--wait=true")


def say(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")


def apply(node: Node, body: dict[str, Any]) -> None:
    node.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump(body))


def status(node: Node, name: str = "chat") -> dict[str, Any]:
    return node.get("llmtaskpool", name, "-n", TEAM).get("status") or {}


def ready(node: Node, replicas: int = 1) -> bool:
    found = status(node)
    conditions = {c["type"]: c["status"] for c in found.get("conditions", ())}
    return conditions.get("Ready") == "True" and found.get("readyReplicas") == replicas


def client(node: Node) -> openai.OpenAI:
    """Through the Service's address, which this machine reaches as the node does."""
    address = node.get("service", "chat", "-n", TEAM)["spec"]["clusterIP"]
    return openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", timeout=300)


def ours(node: Node) -> list[str]:
    """All that is left of us in the cluster, our namespaces' own default objects left out."""
    own = {"default", "kube-root-ca.crt"}
    left = [
        f"{item['kind']} {item['metadata']['namespace']}/{item['metadata']['name']}"
        for namespace in (SYSTEM, TEAM)
        for item in node.get(KINDS, "-n", namespace).get("items", ())
        if item["metadata"]["name"] not in own
    ]
    left += [
        f"{item['kind']} {item['metadata']['name']}"
        for item in node.get(CLUSTER_KINDS).get("items", ())
        if "llmtaskpool" in item["metadata"]["name"]
    ]
    return left
