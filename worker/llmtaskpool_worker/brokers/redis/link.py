"""One connection to the server. What is in flight on it is never cancelled: it is closed instead.

A command that is given up while its answer is on the way would leave that answer to the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

from hiredis import pack_command
from redis.asyncio import ConnectionPool, Sentinel
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

CONNECT_SECONDS = 2.0
Argument = bytes | str | int | float


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is: redis://, rediss:// (TLS), unix:// or redis+sentinel://.

    ``redis+sentinel://user:password@host:port,host:port/name`` asks sentinels for the primary of
    that name. The text may hold a password: it is never shown.
    """

    url: str

    def connections(self) -> Callable[[], AbstractConnection]:
        """What makes connections. Raises ValueError with the remedy."""
        options: dict[str, Any] = {
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": None,  # Link has a clock of its own for what it sends
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        parts = urlsplit(self.url)
        if parts.scheme == "redis+sentinel":
            return self._by_sentinels(options)
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError(
                f"the queue's URL has the scheme {parts.scheme!r}: give redis://, rediss://, "
                "unix:// or redis+sentinel://"
            )
        return ConnectionPool.from_url(self.url, **options).make_connection

    def _by_sentinels(self, options: dict[str, Any]) -> Callable[[], AbstractConnection]:
        parts = urlsplit(self.url)
        name = parts.path.strip("/")
        if not name:
            raise ValueError("the queue's URL names no primary: redis+sentinel://host:26379/NAME")
        hosts = [
            (host or "localhost", int(port or 26379))
            for host, _, port in (
                one.rpartition("@")[2].partition(":") for one in parts.netloc.split(",")
            )
        ]
        login, _, _ = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        tls = parse_qs(parts.query).get("tls") == ["true"]
        options_there = {"socket_timeout": CONNECT_SECONDS}
        sentinel = Sentinel(hosts, sentinel_kwargs=options_there)  # type: ignore[no-untyped-call]
        primary = sentinel.master_for(
            name, username=user or None, password=password or None, ssl=tls, **options
        )
        return primary.connection_pool.make_connection  # type: ignore[no-any-return]

    def shown(self) -> str:
        """The address without its user and password."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class Link:
    """A connection that is made anew after each trouble. One caller at a time."""

    def __init__(self, connections: Callable[[], AbstractConnection]) -> None:
        self._connections = connections
        self._connection: AbstractConnection | None = None

    @property
    def up(self) -> bool:
        """Whether it is connected, as far as is known."""
        return self._connection is not None

    async def open(self) -> None:
        """Connect, log in. Raises one of trouble.GONE."""
        connection = self._connections()
        try:
            async with asyncio.timeout(2 * CONNECT_SECONDS):
                await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection = connection

    async def ask(self, commands: Sequence[tuple[Argument, ...]], seconds: float) -> list[Any]:
        """Send commands at once, read all answers; a refusal stands in the place of its answer.

        After anything else the connection is closed. Raises one of trouble.GONE.
        """
        connection = self._connection
        if connection is None:
            raise ConnectionError("not connected")
        try:
            async with asyncio.timeout(seconds):
                # redis-py would pack in Python, which takes as long as all the rest.
                packed = b"".join(map(pack_command, commands))  # type: ignore[arg-type]
                await connection.send_packed_command(packed, check_health=False)
                return [await self._answer(connection) for _ in commands]
        except BaseException:
            await self.close()
            raise

    async def told(self, seconds: float | None) -> Any:
        """The next thing that the server says by itself. Raises one of trouble.GONE."""
        connection = self._connection
        if connection is None:
            raise ConnectionError("not connected")
        try:
            async with asyncio.timeout(seconds):
                return await connection.read_response()
        except BaseException:
            await self.close()
            raise

    async def say(self, *command: Argument) -> None:
        """Send a command whose answer is read by ``told``. Raises one of trouble.GONE."""
        connection = self._connection
        if connection is None:
            raise ConnectionError("not connected")
        try:
            await connection.send_command(*command, check_health=False)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close it, at once. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    @staticmethod
    async def _answer(connection: AbstractConnection) -> Any:
        try:
            return await connection.read_response()
        except ResponseError as refused:
            return refused
