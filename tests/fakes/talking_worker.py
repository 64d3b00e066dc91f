"""``llmtaskpool-worker`` whose models say each letter of a prompt two thousand times, at once.

``python -m fakes.talking_worker serve …``: a worker with long answers and no model.
"""

from __future__ import annotations

import asyncio

from fakes.http_rig import LetterCodec
from fakes.letters_engine import LettersEngine
from llmtaskpool_worker.__main__ import main
from llmtaskpool_worker.assembly import worker
from llmtaskpool_worker.engines.protocol import Loading, Ready
from llmtaskpool_worker.text import tokens

TIMES = 2000
CONTEXT = 100_000


class TalkingCodec(LetterCodec):
    def push(self, token):
        return chr(token) * TIMES


class TalkingEngine(LettersEngine):
    def __init__(self, spec):
        super().__init__(spec.name, slots=256)
        self.spec = spec

    def _be_ready(self):
        self._events.put_nowait(Loading("loading", 1.0))
        self._events.put_nowait(Ready(CONTEXT, 0x110000, [], "cpu", "float32", self.slots))

    async def _step_for_ever(self):
        while True:
            await asyncio.sleep(0 if self.held or self._cancelled else 0.01)
            self._step()


if __name__ == "__main__":
    worker.make_engine = TalkingEngine
    tokens.load_tokenizer = lambda spec: TalkingCodec()
    main()
