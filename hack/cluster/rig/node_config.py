"""What containerd, kubelet and kube-proxy read. Paths are as the node sees them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rig.control_plane import ControlPlane
from rig.images import SOCKET
from rig.namespaces import INSIDE
from rig.network import Network
from rig.pki import kubeconfig

_CRI = "io.containerd.cri.v1"


@dataclass(frozen=True, slots=True)
class Files:
    """Command-line flags by role, after their files were written."""

    flags: Mapping[str, Sequence[str]]


def write_containerd(folder: Path, runc: Path, plugins: Path, sandbox: str) -> Path:
    """Write containerd's configuration and the CNI network; returns the former's path."""
    snapshotter = "native" if _on_overlay(folder) else "overlayfs"
    lines = f"""\
version = 3
root = "{INSIDE}/containerd"
state = "{INSIDE}/containerd-state"
disabled_plugins = ["io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs"]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{INSIDE}/opt"
[plugins."{_CRI}.images"]
  snapshotter = "{snapshotter}"
[plugins."{_CRI}.images".pinned_images]
  sandbox = "{sandbox}"
[plugins."{_CRI}.runtime"]
  # A machine without CAP_SYS_RESOURCE can't lower a score: pods would not start.
  restrict_oom_score_adj = true
[plugins."{_CRI}.runtime".cni]
  bin_dirs = ["{plugins}"]
  conf_dir = "{INSIDE}/cni"
[plugins."{_CRI}.runtime".containerd]
  default_runtime_name = "runc"
[plugins."{_CRI}.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."{_CRI}.runtime".containerd.runtimes.runc.options]
  SystemdCgroup = false
  BinaryName = "{runc}"
"""
    path = folder / "node" / "containerd.toml"
    path.write_text(lines)
    return path


def _on_overlay(folder: Path) -> bool:
    """Whether the folder lies on an overlay, on which the kernel refuses another."""
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    above = [row for row in rows if folder.is_relative_to(row[4])]
    nearest = max(above, key=lambda row: len(row[4]))
    return nearest[nearest.index("-") + 1] == "overlay"


def write(folder: Path, name: str, net: Network, plane: ControlPlane, cgroup: str) -> Files:
    """Write everything that kubelet and kube-proxy read."""
    inside = folder / "node"
    (inside / "cni").mkdir(exist_ok=True)  # containerd makes it too, to watch it
    (inside / "cni" / "10-rig.conflist").write_text(json.dumps(_cni(net)))
    (inside / "resolv.conf").write_text("")  # pods have no way out, so no name server
    authority = plane.authority
    identity = authority.issue("node", f"system:node:{name}", ["system:nodes"])
    (inside / "node.kubeconfig").write_text(kubeconfig(plane.server, authority, identity))
    identity = authority.issue("kube-proxy", "system:kube-proxy")
    (inside / "proxy.kubeconfig").write_text(kubeconfig(plane.server, authority, identity))
    serving = authority.issue("kubelet", name, hosts=[f"IP:{net.node}", f"DNS:{name}"])
    kubelet = _kubelet(net, cgroup)
    kubelet["authentication"]["x509"] = {"clientCAFile": str(authority.certificate)}
    kubelet |= {"tlsCertFile": str(serving.certificate), "tlsPrivateKeyFile": str(serving.key)}
    (inside / "kubelet.yaml").write_text(yaml.safe_dump(kubelet))
    (inside / "kube-proxy.yaml").write_text(yaml.safe_dump(_proxy(name, net)))
    flags = {
        "kubelet": [
            f"--config={INSIDE}/kubelet.yaml",
            f"--kubeconfig={INSIDE}/node.kubeconfig",
            f"--root-dir={INSIDE}/kubelet",
            f"--cert-dir={INSIDE}/kubelet/pki",
            f"--hostname-override={name}",
            f"--node-ip={net.node}",
        ],
        "kube-proxy": [f"--config={INSIDE}/kube-proxy.yaml"],
    }
    return Files(flags)


def _cni(net: Network) -> dict[str, Any]:
    addresses = {
        "type": "host-local",
        "dataDir": f"{INSIDE}/cni-addresses",
        "ranges": [[{"subnet": net.pods, "gateway": net.pods_gateway}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True}
    return {
        "cniVersion": "1.0.0",
        "name": "rig",
        "plugins": [bridge | {"ipam": addresses}],
    }


def _kubelet(net: Network, cgroup: str) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": net.node,
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}},
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "podLogsDir": f"{INSIDE}/pod-logs",
        "volumePluginDir": f"{INSIDE}/volume-plugins",
        "resolvConf": f"{INSIDE}/resolv.conf",
        "imageGCHighThresholdPercent": 100,  # images are loaded once: a full disk must not cost one
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
    }


def _proxy(name: str, net: Network) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "bindAddress": net.node,
        "clusterCIDR": net.pods,
        "hostnameOverride": name,
        "clientConnection": {"kubeconfig": f"{INSIDE}/proxy.kubeconfig"},
        # These belong to the whole machine, not to the node's network namespace.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
