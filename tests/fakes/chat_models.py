"""Small tokenizers with chat templates, of the kinds that are in use, as model folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "what is the capital of france? the capital of france is paris.",
    "system user assistant im start end inst s <|im_end|> [INST] </s> <start_of_turn>",
    "Grüße aus München, 日本語, \N{EARTH GLOBE EUROPE-AFRICA}, two  blanks\n\nand\ttabs",
]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n"
    "{{ m.content }}\n</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n"
    "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}{% else %}"
    "{{ m.content }}{% endif %}{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content.strip() }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@dataclass(frozen=True)
class ChatModel:
    """A tokenizer's parts, its template, and its control tokens."""

    tokenizer: Tokenizer
    template: str
    control: tuple[str, ...]
    config: dict[str, Any]

    def save(self, folder: Path) -> Path:
        """Write it as a model's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "chat_template.jinja").write_text(self.template)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.config}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder


def _add(tokenizer: Tokenizer, tokens: Sequence[str], plain: Sequence[str] = ()) -> None:
    tokenizer.add_special_tokens([AddedToken(one, normalized=False) for one in tokens])
    tokenizer.add_tokens([AddedToken(one, normalized=False) for one in plain])


def _byte_level(control: Sequence[str], plain: Sequence[str] = (), **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    _add(tokenizer, control, plain)
    return tokenizer


def _sentencepiece_bpe(control: Sequence[str], plain: Sequence[str] = ()) -> Tokenizer:
    """As of Llama 2 and Gemma: blanks are letters, and what is unknown is bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", *control, *bytes_of]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] not in bytes_of]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    _add(tokenizer, control, plain)
    return tokenizer


def _unigram(control: Sequence[str]) -> Tokenizer:
    """Control tokens are pieces of the vocabulary, as in T5: the model itself could build them."""
    letters = sorted(set("".join(CORPUS)) - {" ", "\n", "\t"})
    pieces = [("<unk>", 0.0), *((one, 0.0) for one in control), ("\u2581", -2.0), ("\n", -2.0)]
    pieces += [("\u2581the", -3.0), ("is", -3.0), ("user", -3.0)]
    pieces += [(letter, -5.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    _add(tokenizer, ["<unk>", *control])
    return tokenizer


def chat_models() -> dict[str, ChatModel]:
    """One of each kind, by name."""
    llama = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    gemma = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    mistral = ("<s>", "</s>", "[INST]", "[/INST]")
    chatml = ("<|im_start|>", "<|im_end|>")
    turns = ("<|im_start|>", "<|im_end|>", "<tool_response>", "</tool_response>")
    calls = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    wide = ("<\uff5cbos\uff5c>", "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>")
    deepseek = (
        "{{ bos_token }}{% for m in messages %}<\uff5c{{ 'Assistant' if m.role == 'assistant' "
        "else 'User' }}\uff5c>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<\uff5cAssistant\uff5c>{% endif %}"
    )
    llama_like = _byte_level(llama, ignore_merges=True)
    bos = llama_like.token_to_id(llama[0])
    llama_like.post_processor = processors.TemplateProcessing(
        single=f"{llama[0]} $A", special_tokens=[(llama[0], bos)]
    )
    return {
        "chatml": ChatModel(_byte_level(chatml), CHATML, chatml, {}),
        "tools": ChatModel(_byte_level(turns[:2], turns[2:] + calls), TOOLS, turns + calls, {}),
        "llama3": ChatModel(llama_like, LLAMA3, llama, {"bos_token": llama[0]}),
        "mistral": ChatModel(
            _sentencepiece_bpe(mistral), MISTRAL, mistral, {"bos_token": "<s>", "eos_token": "</s>"}
        ),
        "gemma": ChatModel(
            _sentencepiece_bpe(gemma[:2], ("\n\n", "<h1>", *gemma[2:])),
            GEMMA,
            gemma,
            {"bos_token": "<bos>"},
        ),
        "deepseek": ChatModel(
            _byte_level(wide[:1], wide[1:]), deepseek, wide, {"bos_token": wide[0]}
        ),
        "unigram": ChatModel(
            _unigram(mistral), MISTRAL, mistral, {"bos_token": "<s>", "eos_token": "</s>"}
        ),
    }
