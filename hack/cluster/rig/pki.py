"""A throw-away certificate authority for one cluster, made with openssl.

Keys are P-256: eight RSA keys would take longer than the API server's own start.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from rig.errors import RigError

_CONFIG = """\
[req]
distinguished_name = name
prompt = no
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign, digitalSignature
[leaf]
basicConstraints = CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
"""
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and its private key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates into one folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        if shutil.which("openssl") is None:
            raise RigError("openssl is not here", "run `apt-get install openssl` as root")
        self.folder = folder
        self.identity = Identity(folder / f"{name}.crt", folder / f"{name}.key")
        self._config = folder / "openssl.cnf"
        if not self.identity.certificate.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._config.write_text(_CONFIG)
            self._make(self.identity, f"/CN=llmtaskpool-rig-{name}", ["-extensions", "authority"])

    @property
    def certificate(self) -> Path:
        """What others trust."""
        return self.identity.certificate

    def issue(
        self, name: str, user: str, groups: Sequence[str] = (), hosts: Sequence[str] = ()
    ) -> Identity:
        """A certificate for `user` in `groups`, valid as a server on `hosts`; issued once.

        `hosts` are in openssl's form: `IP:127.0.0.1`, `DNS:localhost`.
        """
        identity = Identity(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        if not identity.certificate.exists():
            subject = "".join(f"/O={_escaped(group)}" for group in groups) + f"/CN={_escaped(user)}"
            signer = ["-CA", str(self.certificate), "-CAkey", str(self.identity.key)]
            names = ["-addext", f"subjectAltName={','.join(hosts)}"] if hosts else []
            self._make(identity, subject, ["-extensions", "leaf", *signer, *names])
        return identity

    def _make(self, identity: Identity, subject: str, extra: Sequence[str]) -> None:
        command = ["openssl", "req", "-x509", "-config", str(self._config), "-days", "365"]
        command += [*_NEW_KEY, "-keyout", str(identity.key), "-out", str(identity.certificate)]
        done = subprocess.run(  # noqa: S603 (openssl with our own arguments)
            [*command, "-subj", subject, *extra], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RigError(
                f"openssl could not make {identity.certificate.name}: {done.stderr.strip()[-300:]}",
                "openssl 3 or newer is needed: see `openssl version`",
            )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("/", "\\/").replace("+", "\\+")


def kubeconfig(server: str, authority: Authority, identity: Identity) -> str:
    """A kubeconfig with everything inside, so that it works from anywhere."""
    cluster = {"server": server, "certificate-authority-data": _encoded(authority.certificate)}
    user = {
        "client-certificate-data": _encoded(identity.certificate),
        "client-key-data": _encoded(identity.key),
    }
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "rig", "cluster": cluster}],
            "users": [{"name": "rig", "user": user}],
            "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": "rig"}}],
            "current-context": "rig",
        }
    )


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
