"""Which binaries make a cluster, from which Go module and with which flags they are built.

Versions live in `modules/*/go.mod`, where Go's own tools keep them; flags that only a command line
can carry live here.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

MODULES = Path(__file__).parents[1] / "modules"


@dataclass(frozen=True)
class Module:
    """One pinned Go module folder.

    `requirement` is the module whose version names the build; None for our own source. `stamp`
    are linker variables, where `{version}` is v1.2.3 and `{number}` is 1.2.3.
    """

    name: str
    requirement: str | None
    stamp: tuple[tuple[str, str], ...] = ()
    tags: str = ""
    cgo: bool = False

    @property
    def folder(self) -> Path:
        """Where go.mod and go.sum lie."""
        return MODULES / self.name

    @cached_property
    def version(self) -> str:
        """The pinned version, such as v1.37.2 ("own" for our own source)."""
        if self.requirement is None:
            return "own"
        text = (self.folder / "go.mod").read_text()
        found = re.search(rf"^\s*(?:require )?{re.escape(self.requirement)} (v\S+)", text, re.M)
        if found is None:
            raise LookupError(f"{self.folder}/go.mod does not require {self.requirement}")
        return found.group(1)

    @property
    def ldflags(self) -> str:
        """The linker's flags: no symbol tables, our version stamps."""
        values = {"version": self.version, "number": self.version.removeprefix("v")}
        stamps = [f"-X {name}={value.format(**values)}" for name, value in self.stamp]
        static = ["-extldflags -static"] if self.cgo else []
        return " ".join(["-s -w", *stamps, *static])

    @cached_property
    def key(self) -> str:
        """Cache key: changes with the sources, the flags and the processor."""
        files = sorted(p for p in self.folder.iterdir() if p.suffix in {".mod", ".sum", ".go"})
        flags = [self.ldflags, self.tags, self.cgo, platform.machine()]
        digest = hashlib.sha256(json.dumps(flags).encode())
        for path in files:
            digest.update(path.read_bytes())
        return f"{self.name}-{self.version}-{digest.hexdigest()[:12]}"


_KUBERNETES_STAMP = (
    ("k8s.io/component-base/version.gitVersion", "{version}"),
    ("k8s.io/component-base/version.gitMajor", "1"),
    ("k8s.io/component-base/version.gitMinor", "37"),
)
KUBERNETES = Module("kubernetes", "k8s.io/kubernetes", stamp=_KUBERNETES_STAMP)
# A module of its own: who needs no kind builds nothing anew because of kubeadm's dependencies.
KUBEADM = Module("kubeadm", "k8s.io/kubernetes", stamp=_KUBERNETES_STAMP)
CONTAINERD = Module(
    name="containerd",
    requirement="github.com/containerd/containerd/v2",
    stamp=(("github.com/containerd/containerd/v2/version.Version", "{version}"),),
    # These snapshotters need headers or devices that a plain machine lacks.
    tags="no_btrfs,no_zfs,no_devmapper",
)
RUNC = Module(
    name="runc",
    requirement="github.com/opencontainers/runc",
    # Without seccomp a pod with the RuntimeDefault profile, so every restricted pod, is refused.
    tags="seccomp,netgo,osusergo",
    cgo=True,
)
HELM = Module(
    name="helm",
    requirement="helm.sh/helm/v4",
    stamp=(("helm.sh/helm/v4/internal/version.version", "{version}"),),
)
KWOK = Module(
    name="kwok",
    requirement="sigs.k8s.io/kwok",
    stamp=(("sigs.k8s.io/kwok/pkg/consts.Version", "{number}"),),
)
KIND = Module(name="kind", requirement="sigs.k8s.io/kind")
# Not Debian's 3.4: Kubernetes 1.37 then reads every list from etcd and refuses the watches that
# newer clients ask for (kwok's halted for 20 s at a time), and kubeadm gives flags it lacks.
ETCD = Module(name="etcd", requirement="go.etcd.io/etcd/server/v3")
PAUSE = Module(name="pause", requirement=None)


@dataclass(frozen=True)
class Binary:
    """One program and the Go package it is built from."""

    name: str
    module: Module
    package: str


def _kubernetes(name: str) -> Binary:
    return Binary(name, KUBERNETES, f"k8s.io/kubernetes/cmd/{name}")


def _containerd(name: str) -> Binary:
    return Binary(name, CONTAINERD, f"github.com/containerd/containerd/v2/cmd/{name}")


# What tests/cluster needs, and no more: the first two are most of a cold build.
CONTROL_PLANE = (
    _kubernetes("kube-apiserver"),
    _kubernetes("kube-controller-manager"),
    Binary("etcd", ETCD, "go.etcd.io/etcd/server/v3"),
)
SCHEDULER = _kubernetes("kube-scheduler")
NODE = (
    SCHEDULER,
    _kubernetes("kubelet"),
    _kubernetes("kube-proxy"),
    _kubernetes("kubectl"),
    _containerd("containerd"),
    _containerd("containerd-shim-runc-v2"),
    _containerd("ctr"),
    Binary("runc", RUNC, "github.com/opencontainers/runc"),
    Binary("pause", PAUSE, "llmtaskpool.io/hack/cluster/pause"),
)
KWOK_BINARY = Binary("kwok", KWOK, "sigs.k8s.io/kwok/cmd/kwok")
TOOLS = (Binary("helm", HELM, "helm.sh/helm/v4/cmd/helm"), KWOK_BINARY)
ALL = CONTROL_PLANE + NODE + TOOLS
# Only hack/kind needs these.
KIND_BINARY = Binary("kind", KIND, "sigs.k8s.io/kind")
OPTIONAL = (KIND_BINARY, Binary("kubeadm", KUBEADM, "k8s.io/kubernetes/cmd/kubeadm"))
