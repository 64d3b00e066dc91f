"""etcd, kube-apiserver and the controllers: a real Kubernetes without nodes, in seconds.

Nothing here needs root, and every port and folder belongs to one cluster, so that any number of
them live side by side.
"""

from __future__ import annotations

import signal
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from rig import commands, fake_nodes, ports, state
from rig.build import cache_folder
from rig.commands import Addresses, Programs
from rig.errors import RigError
from rig.pki import Authority, kubeconfig
from rig.processes import Processes, send

READY_WITHIN = 60.0
_POLL = 0.1
# The controllers end at once when they start before RBAC's own roles exist, and /readyz alone
# does not promise those.
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_BINDINGS = (
    f"{_RBAC}/namespaces/kube-system/rolebindings/system::extension-apiserver-authentication-reader",
    f"{_RBAC}/clusterrolebindings/system:kube-controller-manager",
    f"{_RBAC}/clusterrolebindings/system:kube-scheduler",
)
# A third of the API server's processor time is its garbage collector's; memory is no matter here.
_GO = {"GOGC": "500"}
_DEFAULT_ACCOUNT = "/api/v1/namespaces/default/serviceaccounts/default"


@dataclass(frozen=True, slots=True)
class Options:
    """What a control plane is made of.

    `controllers` and `scheduler` say which of the two run beside the API server. `fake_nodes` is
    how many nodes kwok plays, on which pods are Ready at once (the scheduler runs then too).
    `audit` writes every request's metadata to `audit_log`. `arguments` adds flags to a role by its
    name.
    """

    controllers: bool = True
    scheduler: bool = False
    fake_nodes: int = 0
    audit: bool = False
    arguments: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def needs_scheduler(self) -> bool:
        """Whether kube-scheduler runs."""
        return self.scheduler or self.fake_nodes > 0


class ControlPlane:
    """A running control plane. Stop it with `stop()`, or use it as a context manager."""

    def __init__(
        self, folder: Path, addresses: Addresses, processes: Processes, programs: Programs,
        options: Options,
    ) -> None:  # fmt: skip
        self.state_dir = folder
        self.server = f"https://{addresses.host}:{addresses.api_port}"
        self.kubeconfig = folder / "admin.kubeconfig"
        self.audit_log = folder / "log" / "audit.jsonl"
        self.processes = processes
        self.authority = Authority(folder / "pki")
        self._options = options
        self._commands = commands.control_plane(
            folder, addresses, programs, self.authority, audit_log=self._audit_log()
        )
        self._admin = self.authority.issue("admin", "admin", ["system:masters"])
        self.user_kubeconfig("admin", ["system:masters"])
        if programs.kwok is not None:
            self._commands["kwok"] = fake_nodes.command(programs.kwok, self.kubeconfig)

    def _audit_log(self) -> Path | None:
        return self.audit_log if self._options.audit else None

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of this control plane, in the order of their start."""
        controllers = ["kube-controller-manager"] if self._options.controllers else []
        scheduler = ["kube-scheduler"] if self._options.needs_scheduler else []
        kwok = ["kwok"] if self._options.fake_nodes else []
        return ("etcd", "kube-apiserver", *controllers, *scheduler, *kwok)

    def bring_up(self) -> None:
        """Start every role and wait until the API server admits objects."""
        for role in ("etcd", "kube-apiserver"):
            self.start(role)
        self.wait_ready()
        for role in self.roles[2:]:
            self.start(role)
        if self._options.fake_nodes:
            with self.admin() as http:
                fake_nodes.create(http, self._options.fake_nodes)
        if self._options.controllers:
            self._wait(_DEFAULT_ACCOUNT, _exists(_DEFAULT_ACCOUNT))

    def start(self, role: str) -> None:
        """Start one role, or start it again after `kill`."""
        if role not in self.roles:
            raise RigError(f"no role {role!r} here", f"one of {', '.join(self.roles)}")
        extra = self._options.arguments.get(role, ())
        self.processes.launch(role, [*self._commands[role], *extra], _GO)

    def kill(self, role: str) -> None:
        """SIGKILL one role; its data stays, `start` brings it back."""
        self.processes.kill(role)

    def freeze(self, role: str) -> None:
        """SIGSTOP: the role's connections stay open and nothing answers."""
        send(self.state_dir, role, signal.SIGSTOP)

    def thaw(self, role: str) -> None:
        """SIGCONT after `freeze`."""
        send(self.state_dir, role, signal.SIGCONT)

    def log(self, role: str) -> Path:
        """The file with a role's output."""
        return self.processes.log(role)

    def user_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig for another user, for tests of what RBAC lets them do."""
        name = "".join(letter if letter.isalnum() else "-" for letter in user)
        identity = self.authority.issue(name, user, groups)
        path = self.state_dir / f"{name}.kubeconfig"
        path.write_text(kubeconfig(self.server, self.authority, identity))
        path.chmod(0o600)
        return path

    def admin(self) -> httpx.Client:
        """An HTTP client of the API server that may do everything; close it after use."""
        trust = ssl.create_default_context(cafile=str(self.authority.certificate))
        trust.load_cert_chain(self._admin.certificate, self._admin.key)
        # trust_env off: a proxy for the internet must not get requests for this machine.
        return httpx.Client(base_url=self.server, verify=trust, timeout=5, trust_env=False)

    def wait_ready(self, within: float = READY_WITHIN) -> None:
        """Wait until /readyz answers ok and RBAC's own roles exist; RigError after `within` s."""
        self._wait("/readyz", lambda http: http.get("/readyz").text == "ok", within)
        for path in _BINDINGS:
            self._wait(path, _exists(path), within)

    def _wait(
        self, what: str, answered: Callable[[httpx.Client], bool], within: float = READY_WITHIN
    ) -> None:
        deadline = time.monotonic() + within
        with self.admin() as http:
            while time.monotonic() < deadline:
                for role in self.roles:
                    self.processes.check(role)
                try:
                    if answered(http):
                        return
                except httpx.TransportError:
                    pass
                time.sleep(_POLL)
        raise RigError(
            f"no answer to {what} within {within:.0f} s:\n"
            + self.processes.last_words("kube-apiserver"),
            "the machine may be too busy: try again, or look at the lines above",
        )

    def stop(self) -> None:
        """End every process and delete the state folder."""
        self.processes.end()
        state.discard(self.state_dir)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.stop()


def _exists(path: str) -> Callable[[httpx.Client], bool]:
    return lambda http: http.get(path).status_code == 200


def control_plane(
    state_dir: Path,
    options: Options | None = None,
    *,
    port: int | None = None,
    programs: Programs | None = None,
    die_with_parent: bool = True,
) -> ControlPlane:
    """Bring up a control plane whose every file lies in `state_dir`.

    With `die_with_parent` its processes end with the thread that calls this, even by SIGKILL: call
    from the main thread then. `port` is the API server's; a free one is chosen when it is None.
    Raises RigError, and then leaves nothing.
    """
    options = options or Options()
    if programs is None:
        programs = commands.built_programs(
            cache_folder(), scheduler=options.needs_scheduler, kwok=options.fake_nodes > 0
        )
    if port is not None:
        ports.require_free("127.0.0.1", port)
    folder = state.claim(state_dir, "control-plane")
    try:
        return _brought_up(folder, options, port, programs, die_with_parent=die_with_parent)
    except BaseException:
        Processes(folder, die_with_parent=False).end()
        state.discard(folder)
        raise


def _brought_up(
    folder: Path, options: Options, port: int | None, programs: Programs, *, die_with_parent: bool
) -> ControlPlane:
    chosen = ports.choose("127.0.0.1", 3)
    addresses = Addresses("127.0.0.1", port or chosen[0], chosen[1], chosen[2])
    processes = Processes(folder, die_with_parent=die_with_parent)
    plane = ControlPlane(folder, addresses, processes, programs, options)
    state.write(folder, state.Record("control-plane", plane.server))
    plane.bring_up()
    return plane
