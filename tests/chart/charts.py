"""Rendering the chart, and looking things up in what comes out."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fakes.read_yaml import documents
from rig import build
from rig.pins import ALL

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "llmtaskpool"
NAMESPACE = "pools-system"
Manifest = dict[str, Any]

ALL_MONITORING = {
    name: {"enabled": True}
    for name in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")
}
VALUE_SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "two namespaces": {"namespaces": ["team-a", "team-b"]},
    "nothing cluster-wide": {
        "namespaces": ["team-a"],
        "crds": {"install": False},
        "rbac": {"aggregate": False},
    },
    "own account, no roles": {
        "serviceAccount": {"create": False, "name": "mine"},
        "rbac": {"create": False, "aggregate": False},
    },
    "all monitoring": {"monitoring": ALL_MONITORING, "namespaces": ["team-a"]},
    "network policy": {
        "networkPolicy": {
            "enabled": True,
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        }
    },
    "private registry": {
        "image": {"repository": "registry.example:5000/op", "digest": "sha256:" + "a" * 64},
        "workerImage": {"repository": "registry.example:5000/worker", "tag": "1.2.3"},
        "imagePullSecrets": [{"name": "pull"}],
    },
    "scheduling": {
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "infra", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "priorityClassName": "system-cluster-critical",
    },
    "the platform chooses users": {"runAsUser": None},
    "what workers get": {
        "workers": {
            "imagePullSecrets": [{"name": "registry"}],
            "imagePullPolicy": "Always",
            "env": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
            "envFrom": [{"configMapRef": {"name": "common", "optional": True}}],
            "podLabels": {"team": "ml"},
            "podAnnotations": {"prometheus.io/scrape": "true"},
            "trustedCaRef": {"name": "corporate-ca"},
            "user": {"byPlatform": True},
            "tenants": {"waiting": 100, "weight": 10},
        }
    },
    "small": {
        "replicas": 1,
        "podDisruptionBudget": {"enabled": False},
        "tests": {"enabled": False},
        "resources": {},
    },
    "named and labelled": {
        "fullnameOverride": "pools",
        "commonLabels": {"team": "ml"},
        "podLabels": {"scrape": "yes"},
        "podAnnotations": {"note": "x"},
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
        "serviceAccount": {"annotations": {"a": "b"}},
    },
}


@dataclass(frozen=True, slots=True)
class Refused(Exception):
    """What helm said when it refused the values."""

    message: str


@dataclass(frozen=True, slots=True)
class Helm:
    """The helm program; `folder` is for values files."""

    program: Path
    folder: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.program), *arguments], capture_output=True, text=True, check=False
        )

    def render(self, values: dict[str, Any], release: str = "llmtaskpool") -> list[Manifest]:
        """The objects that the chart makes of these values. Raises Refused."""
        given = self.folder / "values.yaml"
        given.write_text(yaml.safe_dump(values))
        done = self.run(
            "template", release, str(CHART), "--namespace", NAMESPACE, "--values", str(given)
        )
        if done.returncode != 0:
            raise Refused(done.stderr)
        return documents(done.stdout)


def helm_with(folder: Path) -> Helm:
    """The rig's helm, built when it is not there."""
    binary = next(binary for binary in ALL if binary.name == "helm")
    build.build([binary], build.cache_folder(), print)
    return Helm(build.path_of(binary, build.cache_folder()), folder)


def named(objects: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The one object of this kind (and name)."""
    found = [
        one for one in objects if one["kind"] == kind and name in (None, one["metadata"]["name"])
    ]
    assert len(found) == 1, f"{kind} {name}: {[one['metadata']['name'] for one in found]}"
    return found[0]


def kinds(objects: list[Manifest]) -> set[str]:
    return {one["kind"] for one in objects}


def pod_specs(objects: list[Manifest]) -> list[Manifest]:
    """The pod specs among the objects: Deployments' templates, and pods."""
    return [
        one["spec"]["template"]["spec"] if one["kind"] == "Deployment" else one["spec"]
        for one in objects
        if one["kind"] in {"Deployment", "Pod"}
    ]
