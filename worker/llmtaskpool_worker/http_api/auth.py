"""Keys: which requests may pass. Several keys may be valid at once, so that they can be rotated."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from llmtaskpool_worker.contract import keys_in
from llmtaskpool_worker.http_api.crowd import KNOWN
from llmtaskpool_worker.http_api.errors import ApiError
from llmtaskpool_worker.scheduling.tenants import OF_KEY, Tenants

TENANT = "llmtaskpool.tenant"
"""Where a request's scope has the name of the tenant whose key it shows."""
SIGHT = "llmtaskpool.sight"
"""And whose tasks, files and batches it may see: one tenant's; None: everybody's."""
DIGITS = 8
"""So many of a key's digest are in the name of a tenant that has none: enough to tell keys apart,
and too few to find one by."""
REREAD_SECONDS = 5.0
"""A key file is looked at again after this long: a rotated Kubernetes secret needs no restart."""


log = logging.getLogger("llmtaskpool.keys")


class KeysUnreadable(Exception):
    """A key file can't be read or holds no key; the message names the setting and the remedy."""


class Keys:
    """The keys that are valid now. Without any configured, every request passes.

    ``fixed`` are keys from settings; ``file`` holds one key a line, as ``keys_in`` reads it, and is
    read again when it changes. Raises KeysUnreadable at construction when ``file`` gives no key:
    failing then is safer than serving openly. A change that can't be used leaves the keys as they
    were, and is logged.
    """

    def __init__(
        self,
        fixed: Iterable[SecretStr],
        file: Path | None,
        *,
        setting: str,
        clock: Callable[[], float],
    ) -> None:
        self._fixed = frozenset(_digest(key.get_secret_value()) for key in fixed)
        self._file = file
        self._setting = setting
        self._clock = clock
        self._from_file: frozenset[bytes] = frozenset()
        self._stamp: tuple[int, int] | None = None
        self._told = ""
        self._next_look = 0.0
        if file is not None:
            self._look(clock())
            if not self._from_file:
                raise KeysUnreadable(f"{setting} {self._told}")

    def required(self) -> bool:
        """Whether a request needs a key at all."""
        return bool(self._fixed) or self._file is not None

    def allow(self, key: str | None) -> bool:
        """Whether ``key`` is valid; compares with every key, so time tells nothing."""
        return self.whose(key) is not None

    def whose(self, key: str | None) -> str | None:
        """The tenant who shows ``key``; '' where none is needed, None: it is not valid."""
        if not self.required():
            return ""
        if key is None:
            return None
        given = _digest(key)
        return f"{OF_KEY}{given.hex()[:DIGITS]}" if self.holds(given) else None

    def holds(self, given: bytes) -> bool:
        """Whether the key with this digest is one of these."""
        now = self._clock()
        if self._file is not None and now >= self._next_look:
            self._look(now)
        found = False
        for known in self._fixed | self._from_file:
            found |= hmac.compare_digest(given, known)
        return found

    def _look(self, now: float) -> None:
        """Read the file when it changed; what can't be read leaves the keys as they are."""
        assert self._file is not None  # noqa: S101  callers checked
        self._next_look = now + REREAD_SECONDS
        try:
            stat = self._file.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            if stamp == self._stamp:
                return
            keys = keys_in(self._file.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError):
            self._refuse("names a file that can't be read: put one key a line into it, or unset it")
        except ValueError as error:
            self._refuse(f"names a file that can't be used: {error}")
        else:
            self._from_file = frozenset(map(_digest, keys))
            self._stamp, self._told = stamp, ""

    def _refuse(self, reason: str) -> None:
        if self._from_file and reason != self._told:
            log.warning("keys left as they were", extra={"setting": self._setting, "why": reason})
        self._told = reason


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


class KeysOfTenants:
    """The keys of tenants that have names, and those of all others. ``tenants``: what holds."""

    def __init__(
        self, named: Mapping[str, Keys], others: Keys, tenants: Tenants | None = None
    ) -> None:
        self._named, self._others = named, others
        self.tenants = tenants or Tenants()

    def whose(self, key: str | None) -> str | None:
        """As of Keys; a key that is here and there is the named tenant's."""
        if not self._named:
            return self._others.whose(key)
        if key is None:
            return None
        given = _digest(key)
        found = [name for name, keys in self._named.items() if keys.holds(given)]
        rest = self._others.whose(key) if self._others.required() else None
        return found[0] if found else rest


class RequireKey:
    """ASGI: answers 401 before anything else is looked at, the route's existence included."""

    def __init__(
        self, app: ASGIApp, keys: Keys | KeysOfTenants, open_routes: frozenset[str]
    ) -> None:
        self._app = app
        self._keys = keys
        self._open = open_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        is_open = scope["path"] in self._open
        whose = "" if is_open else self._keys.whose(_bearer(Headers(scope=scope)))
        if whose is not None:
            scope[TENANT] = whose
            if isinstance(self._keys, KeysOfTenants):
                scope[SIGHT] = self._keys.tenants.sight(whose)
            if not is_open:
                is_known = scope.get("extensions", {}).get(KNOWN)
                if is_known is not None:
                    is_known()
            await self._app(scope, receive, send)
            return
        await _REFUSED.response()(scope, receive, send)


def tenant_of(request: Request) -> str:
    """Who asks; '' where no key is needed."""
    tenant: str = request.scope.get(TENANT, "")
    return tenant


def sight_of(request: Request) -> str | None:
    """The tenant whose tasks, files and batches alone are there for who asks; None: all are."""
    sight: str | None = request.scope.get(SIGHT)
    return sight


def sees(request: Request, tenant: str) -> bool:
    """Whether what is this tenant's is there for who asks."""
    return sight_of(request) in (None, tenant)


_REFUSED = ApiError(
    401,
    "No valid key: send the header 'Authorization: Bearer <key>' with a key of this pool.",
    code="invalid_api_key",
    close=True,  # the body, if there is one, was not read
)


def _bearer(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None
