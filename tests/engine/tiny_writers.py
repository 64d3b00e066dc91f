"""Small random encoder-decoders of the real architectures, written as real ones come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from .tiny_models import VOCABULARY, write_pair_tokenizer, write_tokenizer

_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "vocab_size": VOCABULARY,
    "init_std": 0.6,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
WRITERS: dict[str, dict[str, Any]] = {
    "marian": _BART,
    "bart": _BART,
    "mbart": _BART,
    "m2m_100": _BART | {"decoder_start_token_id": 1},
    "pegasus": _BART,
    "t5": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": VOCABULARY,
        "initializer_factor": 3.0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    },
}


def write_writer(folder: Path, family: str, *, seed: int = 0, asked: Any = (), **more: Any) -> Path:
    """A random model of ``family``; ``asked`` goes into its generation_config.json."""
    config = AutoConfig.for_model(family, **(WRITERS[family] | more))
    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    model.generation_config.update(**dict(asked))
    model.save_pretrained(folder)
    write_pair_tokenizer(folder, token_types=False)
    return folder


TEXT_BELOW = 300
LANGUAGES = {"<|en|>": 302, "<|de|>": 303}
WINDOW_SECONDS = 2


def write_hearer(folder: Path, *, seed: int = 0, languages: bool = True) -> Path:
    """A random Whisper whose windows are 2 s long: what is said, then 300 the end and so on."""
    config = WhisperConfig(
        vocab_size=310 + 1 + 50 * WINDOW_SECONDS,
        num_mel_bins=16,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=50 * WINDOW_SECONDS,
        max_target_positions=48,
        init_std=0.5,
        bos_token_id=300,
        eos_token_id=300,
        pad_token_id=300,
        decoder_start_token_id=301,
        suppress_tokens=[7, 8, 305, 306],
        begin_suppress_tokens=[20, 300],
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    asked = {
        "decoder_start_token_id": 301,
        "no_timestamps_token_id": 309,
        "prev_sot_token_id": 306,
        "max_initial_timestamp_index": 50,
        "max_length": 48,
        "suppress_tokens": [7, 8, 305, 306],
        "begin_suppress_tokens": [20, 300],
        "return_timestamps": False,
        "is_multilingual": languages,
    }
    if languages:
        asked |= {"lang_to_id": LANGUAGES, "task_to_id": {"transcribe": 307, "translate": 308}}
    own = {"bos_token_id": 300, "eos_token_id": 300, "pad_token_id": 300}
    model.generation_config = GenerationConfig(**own, **asked)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=WINDOW_SECONDS).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


SPOKEN = (
    "ein kleiner Hund und eine Katze gehen nach Hause",
    "a small dog and a cat go home, and the rain falls",
    "guten Tag, wie geht es Ihnen heute? gut, danke!",
    "naïve café, Grüße aus München 2026",
)


def write_marian(folder: Path, *, seed: int = 0) -> Path:
    """A random Marian with two real SentencePiece models, as Helsinki-NLP's folders have them."""
    pieces: set[str] = set()
    for name in ("source", "target"):
        SentencePieceTrainer.train(
            sentence_iterator=iter(SPOKEN * 4),
            model_prefix=str(folder / name),
            vocab_size=120,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / f"{name}.model").rename(folder / f"{name}.spm")
        (folder / f"{name}.vocab").unlink()
        one = SentencePieceProcessor(model_file=str(folder / f"{name}.spm"))
        pieces |= {one.id_to_piece(place) for place in range(one.get_piece_size())}
    special = ["</s>", "<unk>", *sorted(pieces - {"<s>", "</s>", "<unk>"}), "<pad>"]
    vocabulary = {piece: place for place, piece in enumerate(special)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    told = {"source_lang": "de", "target_lang": "en", "tokenizer_class": "MarianTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    size, pad = len(vocabulary), vocabulary["<pad>"]
    ends = {"eos_token_id": 0, "pad_token_id": pad, "decoder_start_token_id": pad}
    config = AutoConfig.for_model("marian", **(_BART | {"vocab_size": size} | ends))
    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        **ends, bad_words_ids=[[pad]], max_length=24, num_beams=4
    )
    model.save_pretrained(folder)
    return folder
