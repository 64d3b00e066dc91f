"""Nodes played by kwok: thousands of pods are Ready without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from rig.errors import RigError

STAGES = Path(__file__).with_name("kwok-stages.yaml")
PODS = "10.128.0.0/16"  # addresses that kwok hands out; nothing answers there
_ROOM = {"cpu": "1000", "memory": "4Ti", "pods": "5000"}


def command(kwok: Path, kubeconfig: Path) -> list[str]:
    """kwok's command line. It serves nothing."""
    return [
        str(kwok),
        f"--kubeconfig={kubeconfig}",
        f"--config={STAGES}",
        f"--cidr={PODS}",
        "--manage-all-nodes=true",
        "--node-lease-duration-seconds=40",
        "--v=WARN",
    ]


def _node(number: int) -> dict[str, Any]:
    name = f"fake-{number}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "type": "kwok"}},
        "status": {"allocatable": _ROOM, "capacity": _ROOM},
    }


def create(http: httpx.Client, count: int) -> None:
    """Create `fake-0` ... through an administrator's client. Each has room for 5,000 pods."""
    for number in range(count):
        made = http.post("/api/v1/nodes", json=_node(number))
        if made.status_code not in {201, 409}:
            raise RigError(
                f"fake-{number} was refused: {made.text[:300]}", "see kube-apiserver's log"
            )
