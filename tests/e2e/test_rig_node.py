"""The rig's own node runs containers and goes, also where the other tests talk to another cluster.

Real kind runs the same programs in another arrangement, so it proves nothing of this one.
"""

from __future__ import annotations

import json
from pathlib import Path

from rig import cgroups, network, pins, processes
from rig import state as states
from rig.images import SANDBOX

from .conftest import RIG, Node, run, wait_for

WEB = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "automountServiceAccountToken": False,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "web",
                        "image": SANDBOX,
                        "imagePullPolicy": "Never",
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }
                ],
            },
        },
    },
}


def links() -> set[str]:
    return {link["ifname"] for link in json.loads(run("ip", "-j", "link"))}


def test_two_restricted_pods_run_on_it_and_down_leaves_nothing(tmp_path: Path) -> None:
    names = [binary.name for binary in (*pins.CONTROL_PLANE, *pins.NODE)]
    only = [part for name in names for part in ("--only", name)]
    programs = json.loads(run(*RIG, "build", *only, "--output", "json"))
    state = tmp_path / "state"
    made = json.loads(run(*RIG, "up", "--state", str(state), "--output", "json"))
    try:
        node = Node(made["kubeconfig"], programs)
        node.kubectl(
            "label", "namespace", "default", "pod-security.kubernetes.io/enforce=restricted"
        )
        node.kubectl("apply", "-f", "-", stdin=json.dumps(WEB))

        def available() -> bool:
            found = node.get("deployment", "web", "-n", "default").get("status", {})
            return found.get("availableReplicas") == 2

        wait_for("two pods", available, 60)
        pods = node.get("pods", "-n", "default")["items"]
        assert len({pod["status"]["podIP"] for pod in pods}) == 2
        record = states.read(state)
        assert record is not None
        assert record.slot is not None
        link = network.Network(record.slot).link
        assert link in links()
    finally:
        run(*RIG, "down", "--state", str(state))
    assert processes.members(state) == []
    assert not state.exists()
    assert not [root for root in cgroups.hierarchies() if (root / cgroups.name_of(state)).exists()]
    assert link not in links()
