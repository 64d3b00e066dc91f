"""A TCP proxy that can lose answers: what was asked reaches the server, and nobody hears of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class CuttingProxy:
    """Passes bytes on to a port of this machine."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.lose_answers = False
        """Swallow what the server says, and close each connection on which it said something."""
        self.refuse = False
        self.silent = False
        """Let nothing pass, and say nothing of it: what is sent meanwhile arrives afterwards."""

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.sleep(0.01)

    def cut(self) -> None:
        """Close all connections now."""
        for writer in self._writers:
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            writer.close()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers |= {writer, there_writer}

        async def pump(
            source: asyncio.StreamReader, to: asyncio.StreamWriter, *, back: bool
        ) -> None:
            with suppress(OSError):
                while data := await source.read(65536):
                    if back and self.lose_answers:
                        break
                    while self.silent:  # noqa: ASYNC110 - set from outside
                        await asyncio.sleep(0.01)
                    to.write(data)
                    await to.drain()
            writer.close()
            there_writer.close()

        await asyncio.gather(
            pump(reader, there_writer, back=False), pump(there_reader, writer, back=True)
        )
        self._writers -= {writer, there_writer}
