"""How a worker's parts are put together: a model is ready once its text can be read too."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest
from fakes.letters_engine import LettersEngine, LetterTokenizer
from llmtaskpool_worker.assembly import catalogued_engine as assembly
from llmtaskpool_worker.assembly.catalogued_engine import CataloguedEngine
from llmtaskpool_worker.engines.protocol import EngineEvent, LoadFailed, Ready
from llmtaskpool_worker.http_api.catalog import Model


def told_until_ready_or_given_up(*outcomes: Exception | None) -> list[EngineEvent]:
    """What such an engine says when its tokenizer's loads end so; none: it can be loaded."""
    left = iter(outcomes)

    def load(_spec: object) -> Any:
        error = next(left)
        if error is not None:
            raise error
        return LetterTokenizer()

    async def story() -> list[EngineEvent]:
        codecs: dict[str, Any] = {}
        model = Model("letters", "generate", 0)
        engine = CataloguedEngine(LettersEngine(), model, codecs, load, lambda _line: None)
        await engine.start()
        told: list[EngineEvent] = []
        async for event in engine.events():
            told.append(event)
            if isinstance(event, Ready):
                assert model.codec is codecs["letters"]
                break
            if isinstance(event, LoadFailed) and event.retrying_in_seconds is None:
                break
        await engine.stop(1.0)
        return told

    return asyncio.run(asyncio.wait_for(story(), 60))


def test_a_tokenizer_that_is_away_for_a_moment_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before: the model stayed failed for ever."""
    monkeypatch.setattr(assembly, "CODEC_RETRY_SECONDS", (0.01, 0.02))
    away = OSError(errno.ENOENT, "away")
    told = told_until_ready_or_given_up(away, away, away, None)
    waits = [event.retrying_in_seconds for event in told if isinstance(event, LoadFailed)]
    assert waits == [0.01, 0.02, 0.02]
    assert isinstance(told[-1], Ready)


def test_a_tokenizer_that_no_time_mends_is_told_once() -> None:
    told = told_until_ready_or_given_up(ValueError("no tokenizer"))
    assert told[-1] == LoadFailed("The tokenizer of letters can't be loaded: check its folder.")
