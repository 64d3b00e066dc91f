"""The command lines of etcd, kube-apiserver, kube-controller-manager and kube-scheduler."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rig import build, pins
from rig.errors import RigError
from rig.pki import Authority, kubeconfig

AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
"""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a control plane listens. `host` is the API server's; etcd is on loopback.

    `services` is the range of ClusterIPs and `service_address` the first of it.
    """

    host: str
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    services: str = "10.0.0.0/24"
    service_address: str = "10.0.0.1"


@dataclass(frozen=True, slots=True)
class Programs:
    """Paths of the programs. A role whose program is None can't be started."""

    etcd: Path
    apiserver: Path
    controller_manager: Path | None = None
    scheduler: Path | None = None
    kwok: Path | None = None


def built_programs(cache: Path, *, scheduler: bool, kwok: bool = False) -> Programs:
    """The rig's own builds; a RigError names what is not built."""
    extra = (*((pins.SCHEDULER,) if scheduler else ()), *((pins.KWOK_BINARY,) if kwok else ()))
    build.require(pins.CONTROL_PLANE, cache, f"{build.BUILD_COMMAND} --control-plane")
    build.require(extra, cache)
    apiserver, controllers, etcd = (build.path_of(one, cache) for one in pins.CONTROL_PLANE)
    return Programs(
        etcd,
        apiserver,
        controllers,
        build.path_of(pins.SCHEDULER, cache) if scheduler else None,
        build.path_of(pins.KWOK_BINARY, cache) if kwok else None,
    )


def kubebuilder_programs() -> Programs | None:
    """etcd and kube-apiserver in `$KUBEBUILDER_ASSETS`, or None when it is not set."""
    named = os.environ.get("KUBEBUILDER_ASSETS")
    if not named:
        return None
    programs = Programs(Path(named) / "etcd", Path(named) / "kube-apiserver")
    for path in (programs.etcd, programs.apiserver):
        if not os.access(path, os.X_OK):
            raise RigError(
                f"KUBEBUILDER_ASSETS is {named}, and {path} is not a program",
                "point it to a folder with etcd and kube-apiserver, or unset it",
            )
    return programs


def control_plane(
    folder: Path,
    addresses: Addresses,
    programs: Programs,
    authority: Authority,
    *,
    audit_log: Path | None = None,
) -> dict[str, Sequence[str]]:
    """Command lines by role; writes the keys, kubeconfigs and policies that they name."""
    server = f"https://{addresses.host}:{addresses.api_port}"
    account_key = _account_key(folder / "pki")
    lines: dict[str, Sequence[str]] = {
        "etcd": _etcd(folder, addresses, programs),
        "kube-apiserver": [
            *_apiserver(folder, addresses, programs, authority, account_key),
            *(_audit(folder, audit_log) if audit_log else ()),
        ],
    }
    controllers = {
        "kube-controller-manager": (
            programs.controller_manager,
            [
                f"--service-account-private-key-file={account_key}",
                f"--root-ca-file={authority.certificate}",
                "--use-service-account-credentials=true",
            ],
        ),
        "kube-scheduler": (programs.scheduler, []),
    }
    for role, (program, extra) in controllers.items():
        if program is not None:
            config = folder / f"{role}.kubeconfig"
            identity = authority.issue(role, f"system:{role}")
            config.write_text(kubeconfig(server, authority, identity))
            lines[role] = [str(program), f"--kubeconfig={config}", *_CONTROLLER_FLAGS, *extra]
    return lines


# Port 0: they serve only metrics, which nobody here reads. The client limits are those of a
# machine that is asked for thousands of pods at once.
_CONTROLLER_FLAGS = (
    "--leader-elect=false",
    "--secure-port=0",
    "--kube-api-qps=500",
    "--kube-api-burst=1000",
)


def _etcd(folder: Path, addresses: Addresses, programs: Programs) -> list[str]:
    client = f"http://127.0.0.1:{addresses.etcd_port}"
    peer = f"http://127.0.0.1:{addresses.etcd_peer_port}"
    return [
        str(programs.etcd),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",  # survives a killed process, which is all that is asked of a test
        "--log-level=warn",
    ]


def _apiserver(
    folder: Path, addresses: Addresses, programs: Programs, authority: Authority, account_key: Path
) -> list[str]:
    hosts = [f"IP:{addresses.host}", "IP:127.0.0.1", f"IP:{addresses.service_address}"]
    hosts += ["DNS:localhost", "DNS:kubernetes", "DNS:kubernetes.default"]
    hosts += ["DNS:kubernetes.default.svc", "DNS:kubernetes.default.svc.cluster.local"]
    serving = authority.issue("apiserver", "kube-apiserver", hosts=hosts)
    kubelet = authority.issue("kubelet-client", "kube-apiserver", ["system:masters"])
    front = Authority(folder / "pki" / "front", "front-ca")
    proxy = front.issue("front-proxy", "front-proxy-client")
    # With a loopback address the endpoint reconciler refuses to start.
    loopback = addresses.host.startswith("127.")
    return [
        str(programs.apiserver),
        f"--etcd-servers=http://127.0.0.1:{addresses.etcd_port}",
        f"--bind-address={addresses.host}",
        f"--secure-port={addresses.api_port}",
        *(["--endpoint-reconciler-type=none"] if loopback else []),
        *([] if loopback else [f"--advertise-address={addresses.host}"]),
        f"--cert-dir={folder / 'pki'}",
        f"--tls-cert-file={serving.certificate}",
        f"--tls-private-key-file={serving.key}",
        f"--client-ca-file={authority.certificate}",
        f"--kubelet-client-certificate={kubelet.certificate}",
        f"--kubelet-client-key={kubelet.key}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={front.certificate}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={proxy.certificate}",
        f"--proxy-client-key-file={proxy.key}",
        f"--service-account-key-file={account_key}",
        f"--service-account-signing-key-file={account_key}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={addresses.services}",
        "--allow-privileged=true",
        "--profiling=false",
    ]


def _audit(folder: Path, log: Path) -> list[str]:
    policy = folder / "audit-policy.yaml"
    policy.write_text(AUDIT_POLICY)
    log.parent.mkdir(parents=True, exist_ok=True)
    return [f"--audit-policy-file={policy}", f"--audit-log-path={log}", "--audit-log-mode=blocking"]


def _account_key(folder: Path) -> Path:
    key = folder / "service-accounts.key"
    if not key.exists():
        subprocess.run(  # noqa: S603 (openssl with our own arguments)
            ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)],  # noqa: S607
            check=True,
            capture_output=True,
        )
    return key
