"""Models that read and then write behind the routes: from letters and sound to text."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.http_rig import serving_engines
from fakes.sounds import sound
from fakes.thread_engine import ThreadEngine
from llmtaskpool_worker.engines.protocol import ModelSpec
from llmtaskpool_worker.text.tokens import load_tokenizer
from transformers import AutoModelForSeq2SeqLM, MarianTokenizer

from .tiny_writers import SPOKEN, write_hearer, write_marian


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_marian(tmp_path_factory.mktemp("marian"), seed=2)


@pytest.fixture(scope="module")
def rig(marian: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    ear = write_hearer(tmp_path_factory.mktemp("ear"), seed=3)
    specs = [
        ModelSpec("de-en", str(marian), "translate"),
        ModelSpec("ear", str(ear), "transcribe"),
    ]
    with serving_engines(*map(ThreadEngine, specs), load_codec=load_tokenizer) as running:
        yield running


def test_a_text_is_translated_as_transformers_does_from_letters_to_letters(
    rig: Any, marian: Path
) -> None:
    texts = [*SPOKEN, "</s> >>fra<< \N{GRINNING FACE}"]
    answer = rig.post("/translate", {"q": texts, "source": "de", "target": "en"})
    assert answer.status_code == 200, answer.text
    tokenizer = MarianTokenizer.from_pretrained(marian)
    model = AutoModelForSeq2SeqLM.from_pretrained(marian)
    with torch.inference_mode():
        for text, found in zip(SPOKEN, answer.json()["translatedText"], strict=False):
            out = model.generate(**tokenizer(text, return_tensors="pt"), num_beams=1)
            assert found == tokenizer.decode(out[0], skip_special_tokens=True)
    languages = [{"code": "de", "name": "German", "targets": ["en"]}]
    assert rig.get("/languages").json() == languages


def test_speech_is_written_down_in_parts_and_told_as_it_grows(rig: Any) -> None:
    file = sound(3.3, seed=1)
    form = {"model": "ear", "language": "en", "response_format": "verbose_json"}
    with rig.client() as client:
        path = "/v1/audio/transcriptions"
        answer = client.post(path, data=form, files={"file": ("a", file)})
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert (told["language"], told["duration"]) == ("en", 3.3)
        assert told["text"] == "".join(one["text"] for one in told["segments"]).strip()
        starts = [one["start"] for one in told["segments"]]
        assert starts == sorted(starts)
        body = {"kind": "transcribe", "model": "ear", "input": b64encode(file).decode()}
        task = client.post("/v1/tasks", json=body | {"arguments": {"language": "en"}}).json()
        events = client.get(f"/v1/tasks/{task['id']}/events").text
        assert events.count("event: text") > 1
        result = client.get(f"/v1/tasks/{task['id']}").json()["result"]
        assert result["text"] == told["text"]
        assert result["usage"] == {"type": "duration", "seconds": 4}
