"""From a checked folder to the loop of a model that reads first and then writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    WhisperFeatureExtractor,
)
from transformers.modeling_outputs import BaseModelOutput

from llmtaskpool_worker.engines.admission import dtype_of, refuse_what_never_fits
from llmtaskpool_worker.engines.linear import pack_linears
from llmtaskpool_worker.engines.seq2seq.languages import begins_of, languages_of
from llmtaskpool_worker.engines.seq2seq.loop import Reader, SequenceLoop
from llmtaskpool_worker.engines.seq2seq.planning import planned
from llmtaskpool_worker.engines.seq2seq.rules import rules_of
from llmtaskpool_worker.engines.seq2seq.running import GRANULE
from llmtaskpool_worker.engines.seq2seq.slots import SlotDecoder
from llmtaskpool_worker.engines.seq2seq.speech import Speech
from llmtaskpool_worker.engines.seq2seq.texts import Texts
from llmtaskpool_worker.engines.weights import (
    ModelRefused,
    check_numbers,
    check_task,
    load_weights,
)

STEP_TOKENS, STEP_TOKENS_CUDA = 1024, 16_384
"""Of sources that one step reads: those who write wait for it."""
STEP_WINDOWS_CUDA = 8
"""Of 30 s of sound; one on a CPU."""
DEFAULT_LENGTH = 1024
"""For models whose configuration names no longest position (T5's are relative)."""
DEFAULT_OUTPUT = 512


def load_sequences(
    folder: Path,
    task: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int = 8,
    options: dict[str, Any] | None = None,
) -> SequenceLoop:
    """The loop over the model in ``folder`` (Hugging Face layout, safetensors).

    ``device`` defaults to cuda where there is one; ``dtype`` to bfloat16 there and float32 on a
    CPU. ``options``: max_threads, cache_bytes, memory_bytes, memory_share, context_length,
    source_language, target_language.

    Raises:
        ModelRefused: the model is for another task, is none that slots can serve, its weights
            aren't whole, or there is never memory enough for it.
    """
    options = options or {}
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.startswith("cuda")
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_task(config, folder, task)
    if not getattr(config, "is_encoder_decoder", False):
        raise ModelRefused(
            f"it is a {config.model_type}, which has no encoder, and task={task} needs one: leave "
            "out the task and ask it in a chat, or name another model"
        )
    speech = task == "transcribe"
    used = dtype_of(dtype, "bfloat16" if on_gpu else "float32")
    refuse_what_never_fits(folder, device, used, options)
    model = load_weights(
        AutoModelForSpeechSeq2Seq if speech else AutoModelForSeq2SeqLM,
        folder,
        config,
        dtype=getattr(torch, used),
    )
    model.to(device).eval().requires_grad_(requires_grad=False)
    check_numbers(model)
    if not any(name.endswith(".wo") for name, _ in model.named_modules()):
        pack_linears(model)  # T5's feed-forward looks at the weight of its own layer
    asked = model.generation_config
    eos = asked.eos_token_id
    ends = list(eos) if isinstance(eos, list) else [eos] if eos is not None else []
    decoder = SlotDecoder(model, masked=not speech)
    reader: Reader
    if speech:
        reader = _speech(folder, config, asked, ends, decoder, on_gpu=on_gpu)
    else:
        reader = _texts(folder, config, asked, ends, task, decoder, options, on_gpu=on_gpu)
    _check_slots(decoder, reader)
    plan = planned(decoder, reader, int(config.vocab_size), threads=threads, options=options)
    return SequenceLoop(
        decoder,
        reader,
        eos=frozenset(ends),
        vocab_size=int(config.vocab_size),
        threads=threads,
        max_threads=plan.max_threads,
        cache_bytes=plan.cache_bytes,
        memory_budget_bytes=plan.budget_bytes,
    )


def _texts(
    folder: Path,
    config: Any,
    asked: Any,
    ends: list[int],
    task: str,
    decoder: SlotDecoder,
    options: dict[str, Any],
    *,
    on_gpu: bool,
) -> Texts:
    start = asked.decoder_start_token_id
    if start is None:
        start = config.bos_token_id
    if start is None:
        raise ModelRefused(
            "nothing says with which token its answers begin (decoder_start_token_id in "
            "config.json): add it, or name another model"
        )
    prefix = [int(start)]
    longest = getattr(config, "max_position_embeddings", None) or DEFAULT_LENGTH
    about: dict[str, Any] = {}
    if task == "translate":
        about = languages_of(folder, config, options)
    else:
        about["begins"] = {"": begins_of(config, "summarization")}
    if asked.forced_bos_token_id is not None and not (
        about.get("target_tokens") and not about.get("marks")
    ):
        prefix.append(int(asked.forced_bos_token_id))
    most = int(longest) - (asked.forced_eos_token_id is not None)
    usual = asked.max_length if (asked.max_length or 20) != 20 else DEFAULT_OUTPUT
    about |= {"prefix": prefix, "max_tokens": min(int(usual), most) - len(prefix)}
    return Texts(
        about=about,
        rules=rules_of(asked, ends, decoder.device),
        device=decoder.device,
        pad=int(config.pad_token_id or 0),
        start=prefix,
        context_length=min(int(longest), int(options.get("context_length", longest))),
        most=most,
        budget=STEP_TOKENS_CUDA if on_gpu else STEP_TOKENS,
        vocab_size=int(config.vocab_size),
    )


def _speech(
    folder: Path, config: Any, asked: Any, ends: list[int], decoder: SlotDecoder, *, on_gpu: bool
) -> Speech:
    if len(ends) != 1 or getattr(asked, "no_timestamps_token_id", None) is None:
        raise ModelRefused(
            "its generation_config.json names no tokens of time (no_timestamps_token_id): download "
            "the model again, with that file"
        )
    return Speech(
        config=config,
        asked=asked,
        extractor=WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True),
        rules=rules_of(asked, ends, decoder.device),
        device=decoder.device,
        dtype=decoder.dtype,
        windows=STEP_WINDOWS_CUDA if on_gpu else 1,
    )


@torch.inference_mode()
def _check_slots(decoder: SlotDecoder, reader: Reader) -> None:
    """Refuse a model that writes something else over slots than by itself.

    Two sources of different lengths go through both ways. It also learns what a token takes.
    """
    model: nn.Module = decoder.model
    vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr,arg-type]  # every one has one
    given, lengths = reader.sample()
    hidden = decoder.encode(given)
    if len(lengths) == 1:
        hidden, lengths = hidden.expand(2, -1, -1), lengths * 2
    texts = [[1 + 7 * i % (vocabulary - 1) for i in range(size)] for size in (6, 4)]
    expected = []
    for row, text in enumerate(texts):
        masked: dict[str, Any] = {}
        if decoder.masked:
            mask = torch.arange(hidden.shape[1], device=decoder.device)[None] < lengths[row]
            masked["attention_mask"] = mask.long()
        out = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden[row : row + 1]),
            decoder_input_ids=torch.tensor([text], device=decoder.device),
            use_cache=False,
            **masked,
        )
        expected.append(out.logits[0, -1].float())
    decoder.take_over_positions()
    decoder.reserve(2, GRANULE, hidden.shape[1], [(0, 0), (0, 0)])
    try:
        found = decoder.begin(hidden, lengths, [text[:-2] for text in texts], 0)
        for left in (2, 1):
            places = [len(text) - left for text in texts]
            tokens = [text[place] for text, place in zip(texts, places, strict=True)]
            found = decoder.go_on(tokens, places, lengths)
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):
        raise ModelRefused(
            "this model can't be served: its decoder is of a kind that isn't known here; use a "
            "Marian, BART, mBART, NLLB, T5, Pegasus or Whisper"
        ) from None
    decoder.shrink(0, 0, 0, [])
    _check_equal(found.float(), torch.stack(expected), decoder.dtype)


def _check_equal(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    scale = expected.abs().max().clamp(min=1e-6)
    if not torch.allclose(found / scale, expected / scale, atol=tolerance, rtol=0):
        raise ModelRefused(
            "this model can't be served: its decoder isn't the usual one, so that its answers "
            "over slots would differ; use a Marian, BART, mBART, NLLB, T5, Pegasus or Whisper"
        )
