"""Where a model's server is: ``openai:http://host:port/v1#name``, and which hosts may be one.

Only what can be no other's: this machine (in a pod: the pod), and a Service of the pool's own
namespace, which is a name without dots. Others are allowed by LLMTASKPOOL_UPSTREAM_HOSTS.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.engines.model_spec import MOST_TOKENS, MOST_WAITING

SCHEME = "openai:"
EXAMPLE = "openai:http://127.0.0.1:8001/v1#name"
_WHOLE = frozenset({"max_threads", "context_length", MOST_WAITING, MOST_TOKENS})
OPTIONS = _WHOLE | {"tokenizer", "api_key_env"}
_SERVICE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Address:
    """``url`` ends with no slash and is what routes are added to; ``root`` is its origin.

    ``model``: what the server calls the model; empty: the only one that it has.
    """

    url: str
    root: str
    host: str
    port: int
    model: str


def address_of(source: str) -> Address:
    """The address in a model's source. Raises ValueError with the remedy."""
    text, _, model = source.removeprefix(SCHEME).partition("#")
    try:
        parts = urlsplit(text)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise ValueError(f"source {shown(source)} is no address: write {EXAMPLE}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"source {shown(source)} is no http:// address: write {EXAMPLE}")
    if parts.username or parts.password:
        raise ValueError(
            "source holds a user or a password: put the server's key into a variable and name that "
            "with the option api_key_env"
        )
    if parts.query:
        raise ValueError(f"source {shown(source)} has a query: write {EXAMPLE}")
    if len(model) > 256 or not model.isprintable():
        raise ValueError(f"source names the model {shown(model)}: use at most 256 letters after #")
    root = f"{parts.scheme}://{parts.netloc}"
    return Address(root + parts.path.rstrip("/"), root, parts.hostname, port, model)


def check_host(address: Address, allowed: Collection[str]) -> None:
    """Raises ValueError when the host is neither this machine nor a Service nor ``allowed``.

    ``allowed`` holds ``host`` or ``host:port``.
    """
    host = address.host
    if host in allowed or f"{host}:{address.port}" in allowed or host == "localhost":
        return
    try:
        if ip_address(host).is_loopback:
            return
    except ValueError:
        if _SERVICE.fullmatch(host):
            return
    raise ValueError(
        f"the host {shown(host)} is neither this machine (127.0.0.1, localhost) nor a Service of "
        "the pool's own namespace (a name without dots): add it to LLMTASKPOOL_UPSTREAM_HOSTS if "
        "requests may go there"
    )


def check_options(options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that a server's model doesn't have, or a wrong value."""
    for name, value in options.items():
        if name not in OPTIONS:
            known = ", ".join(sorted(OPTIONS))
            raise ValueError(f"option {shown(name)} is none of a server's model: use {known}")
        whole = name in _WHOLE
        if whole and (type(value) is not int or not 1 <= value <= 10_000_000):
            raise ValueError(f"option {name} is {shown(value)}: use a whole number from 1")
        if not whole and (not isinstance(value, str) or not value):
            raise ValueError(f"option {name} is {shown(value)}: use a text")
