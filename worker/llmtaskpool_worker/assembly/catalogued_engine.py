"""An engine of which the catalog knows what its model can do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from llmtaskpool_worker.disclosure import where_raised
from llmtaskpool_worker.engines.backoff import Backoff
from llmtaskpool_worker.engines.load_errors import may_pass
from llmtaskpool_worker.engines.protocol import (
    AdmitForward,
    Engine,
    EngineDied,
    EngineEvent,
    LoadFailed,
    Loading,
    ModelSpec,
    Ready,
    ToEngine,
)
from llmtaskpool_worker.http_api.catalog import Codec, Model

log = logging.getLogger("llmtaskpool.worker")

Announce = Callable[[dict[str, Any]], None]
LoadCodec = Callable[[ModelSpec], Codec]

CODEC_RETRY_SECONDS = (1.0, 60.0)
"""What may pass (a file that is away) is tried again: the first and the longest wait."""


class CataloguedEngine:
    """An Engine that tells the catalog what its model can do, before the pool sees it ready."""

    def __init__(
        self,
        engine: Engine,
        model: Model,
        codecs: dict[str, Any],
        load_codec: LoadCodec,
        announce: Announce,
    ) -> None:
        self.spec = engine.spec
        self._engine = engine
        self._model = model
        self._codecs = codecs
        self._load_codec = load_codec
        self._announce = announce

    async def start(self) -> None:
        """As the engine's."""
        await self._engine.start()

    def send(self, message: ToEngine | AdmitForward) -> None:
        """As the engine's."""
        self._engine.send(message)

    def kill(self) -> None:
        """As the engine's."""
        self._engine.kill()

    async def stop(self, grace_seconds: float) -> None:
        """As the engine's."""
        await self._engine.stop(grace_seconds)

    async def events(self) -> AsyncIterator[EngineEvent]:
        """As the engine's; Ready is passed on once the tokenizer is there too."""
        async for happened in self._engine.events():
            if not isinstance(happened, Ready):
                self._tell(happened)
                yield happened
                continue
            backoff = Backoff(*CODEC_RETRY_SECONDS)
            while (failure := await self._learn(happened, backoff.next())) is not None:
                self._tell(failure)
                yield failure
                if failure.retrying_in_seconds is None:
                    break
                await asyncio.sleep(failure.retrying_in_seconds)
            else:
                yield happened

    async def _learn(self, ready: Ready, wait: float) -> LoadFailed | None:
        """What the model can do; else why not, and to be tried again after ``wait`` or never."""
        name = self.spec.name
        if self._model.codec is not None:
            return None  # a restart changes nothing of the text
        self._model.about = ready.about
        if self.spec.forwards:
            return await self._count_by(ready)
        if self.spec.task == "tensor" or ready.about.get("modality") == "image":
            return None  # it reads no text
        try:
            codec = await asyncio.to_thread(self._load_codec, self.spec)
        except Exception as error:
            log.error(  # noqa: TRY400  a traceback has paths
                "tokenizer not loaded", extra={"model": name, "error": where_raised(error)}
            )
            passes = may_pass(error)
            return LoadFailed(
                f"The tokenizer of {name} can't be loaded: check its folder.",
                may_pass=passes,
                retrying_in_seconds=wait if passes else None,
            )
        self._model.context_length = ready.context_length
        self._model.vocab_size = ready.vocab_size
        self._model.dimensions = ready.embedding_dimensions
        self._model.codec = codec
        self._codecs[name] = codec
        return None

    async def _count_by(self, ready: Ready) -> LoadFailed | None:
        """A server's model reads texts itself; they are counted here where a tokenizer is given."""
        self._model.context_length = ready.context_length or None
        path = self.spec.options.get("tokenizer")
        if path is None or self._model.counter is not None:
            return None
        from llmtaskpool_worker.text.token_count import TokenCounter

        try:
            self._model.counter = await asyncio.to_thread(TokenCounter, Path(path))
        except Exception:
            told = f"The option tokenizer of {self.spec.name} names no tokenizer.json."
            return LoadFailed(told)
        return None

    def _tell(self, happened: EngineEvent) -> None:
        if isinstance(happened, Loading):
            line: dict[str, Any] = {"event": "loading", "stage": happened.stage}
            line["fraction"] = round(happened.fraction, 4)
        elif isinstance(happened, LoadFailed):
            line = {"event": "load_failed", "message": happened.message}
            line["retrying_in_seconds"] = happened.retrying_in_seconds
            self._log("model not loaded", line)
        elif isinstance(happened, EngineDied):
            line = {"event": "engine_died", "exit_code": happened.exit_code}
            line |= {"reason": happened.reason, "said": happened.said}
            line["restarting_in_seconds"] = happened.restarting_in_seconds
            self._log("engine died", line)
        else:
            return
        self._announce(line | {"model": self.spec.name})

    def _log(self, what: str, line: dict[str, Any]) -> None:
        told = {name: value for name, value in line.items() if name not in ("event", "message")}
        if "message" in line:
            told["why"] = line["message"]  # a record has a message of its own
        log.error(what, extra=told | {"model": self.spec.name})
