"""What people do with our chart and with install.yaml, and all that is in a cluster afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rig
import yaml
from fakes.mini_kubelet import MiniKubelet
from fakes.operator_process import OperatorProcess
from fakes.read_yaml import document, documents

from .conftest import CRD_FILE, OPERATOR_NAMESPACE, ROOT, Cluster, wait_for
from .pools import Pools, manifest

CHART = ROOT / "helm" / "llmtaskpool"
INSTALL = ROOT / "deploy" / "install.yaml"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CRD = f"{CRDS}/llmtaskpools.llmtaskpool.io"
NEXT_FIELD = "fieldOfTheNextVersion"
_OF_OTHERS = ("events ", "leases kube-system/", "endpoints ", "endpointslices ")
"""Made by Kubernetes for its own use; endpoints go with their Service."""


@dataclass(frozen=True, slots=True)
class Site:
    """A control plane, helm, and pods that run as processes; the operator's pods do not run."""

    plane: rig.ControlPlane
    cluster: Cluster
    kubelet: MiniKubelet
    program: Path
    folder: Path

    def helm(self, *arguments: str) -> str:
        """Run helm; a failure has what it said."""
        done = subprocess.run(
            [str(self.program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"KUBECONFIG": str(self.plane.kubeconfig)},
        )
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def get(self, path: str) -> dict[str, Any]:
        status, answer = self.cluster.request("GET", path)
        return json.loads(answer) if status == 200 else {}

    def delete(self, path: str) -> None:
        status, answer = self.cluster.request("DELETE", path)
        assert status in {200, 202, 404}, answer.decode()

    def make_namespace(self, name: str) -> None:
        body = {"metadata": {"name": name}}
        self.cluster.request("POST", "/api/v1/namespaces", body, Content_Type="application/json")
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        wait_for(f"{name} is ready", lambda: self.get(account))

    def served(self) -> None:
        """Wait until the server knows pools."""
        path = "/apis/llmtaskpool.io/v1alpha1/llmtaskpools"
        wait_for("pools are served", lambda: self.cluster.request("GET", path)[0] == 200)

    def collected(self, pools: Pools) -> None:
        """Wait until the garbage collector knows pools: it looks for new kinds every 30 s.

        Only then does it end a deletion in the foreground; what a pool owns may go before, as it
        asks for owners that it does not know. Of a CRD that goes before that, whatever the pools
        owned stays: no fault of ours, and no CRD of a person's goes so soon.
        """
        pools.apply(manifest("probe"))
        self.delete(f"{pools.path}/probe?propagationPolicy=Foreground")
        wait_for("the collector knows pools", lambda: not pools.pool("probe"), 60)

    def operator(self, log: Path) -> OperatorProcess:
        """An operator with the rights of the installed account, and no others."""
        account = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/serviceaccounts/llmtaskpool-operator"
        wait_for("the operator's account", lambda: self.get(account))
        body = {"spec": {"expirationSeconds": 3600}}
        status, answer = self.cluster.request(
            "POST", f"{account}/token", body, Content_Type="application/json"
        )
        assert status == 201, answer.decode()
        server = {
            "server": self.plane.server,
            "certificate-authority": str(self.plane.authority.certificate),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "pod",
            "clusters": [{"name": "pod", "cluster": server}],
            "users": [{"name": "pod", "user": {"token": json.loads(answer)["status"]["token"]}}],
            "contexts": [{"name": "pod", "context": {"cluster": "pod", "user": "pod"}}],
        }
        path = log.with_suffix(".kubeconfig")
        path.write_text(yaml.safe_dump(config))
        return OperatorProcess(path, log, identity=log.stem, resync_seconds="3")

    def apply_file(self, text: str, manager: str = "kubectl") -> list[dict[str, Any]]:
        """As `kubectl apply --server-side`: a field that another manager has is a conflict."""
        answers = []
        for one in documents(text):
            status, answer = self.cluster.request(
                "PATCH",
                f"{self.path_of(one)}?fieldManager={manager}&fieldValidation=Strict",
                one,
                Content_Type="application/apply-patch+yaml",
            )
            assert status in {200, 201}, answer.decode()
            answers.append(json.loads(answer))
        return answers

    def delete_file(self, text: str) -> None:
        """As `kubectl delete --wait=false`."""
        for one in documents(text):
            if self.get(_folder_of(self.get, one)):
                self.delete(self.path_of(one))

    def path_of(self, one: dict[str, Any]) -> str:
        return f"{_folder_of(self.get, one)}/{one['metadata']['name']}"

    def versions(self, text: str) -> dict[str, str]:
        """The resource version of each object of a file."""
        found = {self.path_of(one): self.get(self.path_of(one)) for one in documents(text)}
        return {path: body["metadata"]["resourceVersion"] for path, body in found.items()}

    def everything(self) -> set[str]:
        """Each object of each kind that the server knows, but Kubernetes' own for its own use."""
        found: set[str] = set()
        for folder, resource in self._resources():
            for item in self.get(f"{folder}/{resource}").get("items") or ():
                meta = item["metadata"]
                found.add(f"{resource} {meta.get('namespace', '')}/{meta['name']}")
        return {name for name in found if not name.startswith(_OF_OTHERS)}

    def _resources(self) -> Iterator[tuple[str, str]]:
        groups = [one["preferredVersion"] for one in self.get("/apis")["groups"]]
        for folder in ("/api/v1", *(f"/apis/{one['groupVersion']}" for one in groups)):
            for resource in self.get(folder).get("resources", ()):
                if "list" in resource["verbs"] and "/" not in resource["name"]:
                    yield folder, resource["name"]


def _folder_of(get: Any, one: dict[str, Any]) -> str:
    """Where objects of its kind and namespace are, as the server says it."""
    version = one["apiVersion"]
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    resources = get(root).get("resources", ())
    (kind,) = [r for r in resources if r["kind"] == one["kind"] and "/" not in r["name"]]
    if not kind["namespaced"]:
        return f"{root}/{kind['name']}"
    return f"{root}/namespaces/{one['metadata']['namespace']}/{kind['name']}"


def next_crd() -> str:
    """The CRD as a later version would have it: with one field more, that may be left out."""
    crd = document(CRD_FILE.read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"][NEXT_FIELD] = {"type": "string", "maxLength": 63}
    return yaml.safe_dump(crd, sort_keys=False)


def next_chart(folder: Path) -> Path:
    """The chart with that CRD."""
    made = Path(shutil.copytree(CHART, folder / "next"))
    (made / "files" / "crds" / "llmtaskpool.yaml").write_text(next_crd())
    chart = document((made / "Chart.yaml").read_text())
    (made / "Chart.yaml").write_text(yaml.safe_dump(chart | {"version": "0.2.0"}))
    return made


def next_file() -> str:
    """install.yaml with that CRD."""
    text = INSTALL.read_text()
    (crd,) = documents(next_crd())
    return yaml.safe_dump_all(crd if one["kind"] == crd["kind"] else one for one in documents(text))
