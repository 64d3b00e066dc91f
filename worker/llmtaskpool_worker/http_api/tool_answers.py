"""Answers of a chat that may call tools: words, and calls with their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmtaskpool_worker.http_api.openai_answers import ChatShape, Json, usage
from llmtaskpool_worker.http_api.tools import Calling
from llmtaskpool_worker.scheduling.task import Generated, TextDelta, TokenLogprob
from llmtaskpool_worker.text.tool_calls import Call, CallReader, More, Said, Words


@dataclass(slots=True)
class _Reading:
    """What was read of one choice; ``untold`` are log-probabilities that wait for a chunk."""

    reader: CallReader
    calls: int = 0
    tokens: int = 0
    untold: list[TokenLogprob] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class ToolShape(ChatShape):
    """chat.completion and its chunks, with tool_calls."""

    calling: Calling
    _reads: dict[int, _Reading] = field(default_factory=dict)

    def whole(self, results: Sequence[Generated], choices: int) -> Json:
        """The answer without streaming."""
        answered = [self._choice(index, result) for index, result in enumerate(results)]
        return self._head(chunk=False) | {"choices": answered, "usage": usage(results, choices)}

    def deltas(self, index: int, delta: TextDelta) -> list[Json]:
        """The chunks of what became certain: none while a call is held back."""
        reading = self._reading(index)
        reading.tokens += len(delta.tokens)
        reading.untold += delta.logprobs
        return self._said(index, reading.reader.push(delta.text))

    def lasts(self, index: int, result: Generated) -> list[Json]:
        """What is left, and the chunk with the reason of the end."""
        left = self._said(index, self._reading(index).reader.finish())
        reading = self._reading(index)
        logprobs = self._logprobs(reading.untold) if reading.untold else None
        last = self._chunk(index, {}, logprobs, reason=self._reason(reading.calls, result))
        return [*left, last]

    def _reading(self, index: int) -> _Reading:
        return self._reads.setdefault(index, _Reading(self.calling.reader()))

    def _said(self, index: int, said: Sequence[Said]) -> list[Json]:
        chunks = []
        reading = self._reading(index)
        for one in said:
            tokens, reading.tokens = reading.tokens, 0
            untold, reading.untold = reading.untold, []
            delta = self._delta(index, one, reading)
            chunks.append(self._chunk(index, delta, self._logprobs(untold), drawn=tokens))
        return chunks

    def _delta(self, index: int, said: Said, reading: _Reading) -> Json:
        if isinstance(said, Words):
            return {"content": said.text}
        if isinstance(said, More):
            part = {"index": reading.calls - 1, "function": {"arguments": said.arguments}}
            return {"tool_calls": [part]}
        reading.calls += 1
        return {"tool_calls": [{"index": reading.calls - 1} | self._call(index, reading, said)]}

    def _call(self, index: int, reading: _Reading, call: Call) -> Json:
        return {
            "id": f"call_{self.task_id}_{index}_{reading.calls - 1}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }

    def _choice(self, index: int, result: Generated) -> Json:
        reading = _Reading(self.calling.reader())
        words, calls = "", []
        for said in (*reading.reader.push(result.text), *reading.reader.finish()):
            if isinstance(said, Words):
                words += said.text
            elif isinstance(said, Call):
                reading.calls += 1
                calls.append(self._call(index, reading, said))
            else:
                calls[-1]["function"]["arguments"] += said.arguments
        message: Json = {"role": "assistant", "content": words or None, "refusal": None}
        return {
            "index": index,
            "message": message | ({"tool_calls": calls} if calls else {"content": words}),
            "logprobs": self._logprobs(result.logprobs),
            "finish_reason": self._reason(len(calls), result),
        }

    def _reason(self, calls: int, result: Generated) -> str:
        """As OpenAI's: a call that was asked for by its name ends with ``stop``."""
        called = calls and result.finish_reason == "stop" and not self.calling.forced
        return "tool_calls" if called else result.finish_reason
