"""An answer as it grows."""

from __future__ import annotations

import pytest
from fakes.letters_engine import LetterTokenizer
from llmtaskpool_worker.scheduling.task import Generate, TokenLogprob
from llmtaskpool_worker.text.generated import GenerationText


class Halves(LetterTokenizer):
    """Odd tokens are first halves of letters and have no text of their own."""

    def push(self, token):
        return "" if token % 2 else chr(token)


@pytest.mark.parametrize(
    ("tokens", "stop", "text"),
    [([98, 99], (), "b"), ([98, 98, 99], ("zz",), "bb"), ([98, 100, 99], ("d",), "b")],
)
def test_the_log_probabilities_of_a_stream_are_those_of_the_whole_answer(tokens, stop, text):
    grows = GenerationText(Generate((1,), 9, stop=stop), Halves())
    deltas = [grows.push(token, TokenLogprob(token, -1.0)) for token in tokens]
    deltas.append(grows.finish())
    told = [one.token for delta in deltas if delta for one in delta.logprobs]
    whole = grows.result("length")
    assert told == [one.token for one in whole.logprobs] == tokens
    assert "".join(delta.text for delta in deltas if delta) == whole.text == text


def test_nothing_is_told_at_the_end_when_all_was_told():
    grows = GenerationText(Generate((1,), 9), Halves())
    assert grows.push(98, TokenLogprob(98, -1.0)).text == "b"
    assert grows.finish() is None
