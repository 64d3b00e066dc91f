"""Speech: token for token as transformers' own generate, over windows too; what can't be heard."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from fakes.letters_engine import LetterTokenizer
from fakes.sounds import sound
from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitSound,
    Cancel,
    Finished,
    FromEngine,
    Park,
    RequestFailed,
    Resume,
    Step,
    Values,
)
from llmtaskpool_worker.engines.seq2seq.load import load_sequences
from llmtaskpool_worker.engines.seq2seq.loop import SequenceLoop
from llmtaskpool_worker.engines.weights import ModelRefused
from llmtaskpool_worker.scheduling.task import Transcribe
from llmtaskpool_worker.text.spoken import SpokenText
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from .tiny_writers import TEXT_BELOW, WINDOW_SECONDS, write_hearer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hearer(tmp_path_factory.mktemp("hearer"), seed=3)


@pytest.fixture(scope="module")
def loop(folder: Path) -> SequenceLoop:
    return load_sequences(folder, "transcribe", threads=3)


@cache
def plain(folder: Path) -> tuple[Any, Any]:
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    return model, WhisperFeatureExtractor.from_pretrained(folder)


def segments(folder: Path, file: bytes, **asked: Any) -> list[list[Any]]:
    """What transformers makes of a file: from, until and tokens of each part."""
    model, extractor = plain(folder)
    samples, rate = soundfile.read(io.BytesIO(file), dtype="float32")
    long = len(samples) > WINDOW_SECONDS * rate
    given = extractor(
        samples,
        sampling_rate=rate,
        truncation=False,
        padding="longest" if long else "max_length",
        return_tensors="pt",
    )
    out = model.generate(given.input_features, return_segments=True, **asked)
    return [
        [float(one["start"]), float(one["end"]), one["tokens"].tolist()]
        for one in out["segments"][0]
    ]


def run(loop: SequenceLoop, *messages: Any) -> dict[int, Any]:
    """What each request comes to: its Values, or the code of its failure."""
    found: dict[int, Any] = {}

    def take_in(events: list[FromEngine]) -> None:
        for event in events:
            if isinstance(event, Values):
                found[event.id] = event.values
            elif isinstance(event, RequestFailed):
                found[event.id] = event.code

    for message in messages:
        take_in(loop.accept(message))
    while loop.busy():
        take_in(loop.step())
    return found


def same(parts: list[Any], expected: list[list[Any]]) -> None:
    assert [part[2] for part in parts] == [tokens for _, _, tokens in expected]
    for part, wanted in zip(parts, expected, strict=True):
        assert part[:2] == pytest.approx(wanted[:2], abs=1e-6)


def test_files_of_all_lengths_at_once_are_written_down_as_transformers_does(
    folder: Path, loop: SequenceLoop
) -> None:
    files = [sound(seconds, seed=n) for n, seconds in enumerate((0.7, 1.9, 5.3, 8.1))]
    asked = [AdmitSound(n, file, "en", timestamps=True) for n, file in enumerate(files)]
    found = run(loop, *asked)
    for place, file in enumerate(files):
        language, parts = found[place]
        assert language == "en"
        expected = segments(folder, file, language="en", task="transcribe", return_timestamps=True)
        same(parts, expected)
    assert len(found[3][1]) > 1, "the test hears several windows"


def test_a_short_file_without_times_and_one_to_be_translated(
    folder: Path, loop: SequenceLoop
) -> None:
    file = sound(1.3, seed=7)
    found = run(loop, AdmitSound(1, file, "de"), AdmitSound(2, file, "de", translate=True))
    for request, task in ((1, "transcribe"), (2, "translate")):
        (part,) = found[request][1]
        model, extractor = plain(folder)
        samples, rate = soundfile.read(io.BytesIO(file), dtype="float32")
        given = extractor(samples, sampling_rate=rate, return_tensors="pt").input_features
        out = model.generate(given, language="de", task=task)[0].tolist()
        said = [token for token in out if token not in (301, 303, 307, 308, 309, TEXT_BELOW)]
        assert part[2] == said


def test_how_sure_it_was_is_what_transformers_scores_say(folder: Path, loop: SequenceLoop) -> None:
    file = sound(1.3, seed=7)
    model, extractor = plain(folder)
    samples, rate = soundfile.read(io.BytesIO(file), dtype="float32")
    given = extractor(samples, sampling_rate=rate, return_tensors="pt").input_features
    asked = {"return_dict_in_generate": True, "output_scores": True}
    out = model.generate(given, language="de", task="transcribe", **asked)
    scores = torch.stack(out.scores)[:, 0].float().log_softmax(-1)
    drawn = out.sequences[0][-len(scores) :]
    sure = float(scores[torch.arange(len(scores)), drawn].sum())
    ((_, _, tokens, found),) = run(loop, AdmitSound(1, file, "de"))[1][1]
    assert tokens == [token for token in drawn.tolist() if token != TEXT_BELOW]
    assert found == pytest.approx(sure / (len(tokens) + 1), abs=1e-3), "the end counts"
    text = SpokenText(
        Transcribe(file, 1.3), LetterTokenizer(), lambda ids: "na" * len(ids), TEXT_BELOW
    )
    value = text.concluded(["de", [[0.0, 1.3, [5, 6, 7, 8, 9, 10, 11, 12, 13, 300], found]]]).value
    (segment,) = value["segments"]
    assert segment["avg_logprob"] == found
    assert segment["compression_ratio"] > 1, "it says one thing again and again"


def test_a_language_that_nobody_told_is_heard(folder: Path, loop: SequenceLoop) -> None:
    file = sound(1.5, seed=4)
    model, extractor = plain(folder)
    samples, rate = soundfile.read(io.BytesIO(file), dtype="float32")
    given = extractor(samples, sampling_rate=rate, return_tensors="pt").input_features
    heard = {302: "en", 303: "de"}[int(model.detect_language(given)[0])]
    assert run(loop, AdmitSound(1, file)) == run(loop, AdmitSound(1, file, heard))


def test_what_was_said_before_comes_before_it(folder: Path, loop: SequenceLoop) -> None:
    file = sound(1.5, seed=2)
    prompt = [50, 60, 70]
    found = run(loop, AdmitSound(1, file, "en", timestamps=True, prompt=prompt))
    expected = segments(
        folder,
        file,
        language="en",
        task="transcribe",
        return_timestamps=True,
        prompt_ids=torch.tensor([306, *prompt]),
    )
    same(found[1][1], expected)


def test_sound_at_another_rate_and_of_two_channels_is_heard(loop: SequenceLoop) -> None:
    found = run(
        loop,
        AdmitSound(1, sound(1.0, rate=44_100, channels=2, kind="FLAC"), "en"),
        AdmitSound(2, sound(1.0, rate=8_000, kind="OGG"), "en"),
        AdmitSound(3, sound(1.0, rate=48_000, kind="MP3"), "en"),
    )
    assert {type(one) for one in found.values()} == {list}


def test_who_is_put_aside_in_a_later_window_goes_on_as_before(loop: SequenceLoop) -> None:
    file = sound(5.3, seed=2)
    whole = run(loop, AdmitSound(1, file, "en"))[1]
    loop.accept(AdmitSound(1, file, "en"))
    drawn = 0
    while drawn < 60:  # more than one window's
        drawn += sum(len(e.tokens) for e in loop.step() if isinstance(e, Step))
    loop.accept(Park(1))
    told = loop.step()
    assert [e.finished for e in told if isinstance(e, Step)] == [[Finished(1, "parked")]]
    assert run(loop, Resume(1)) == {1: whole}


def test_one_that_is_cancelled_before_it_was_decoded_is_gone(loop: SequenceLoop) -> None:
    loop.accept(AdmitSound(1, sound(1.0)))
    loop.accept(Cancel(1))
    assert run(loop, AdmitSound(2, sound(0.5), "en")).keys() == {2}


def test_what_can_t_be_heard_fails_alone(loop: SequenceLoop) -> None:
    wrong: dict[int, tuple[Any, str]] = {
        1: (AdmitSound(1, b"RIFF but no sound"), "bad_sound"),
        2: (AdmitSound(2, b""), "bad_sound"),
        3: (AdmitSound(3, sound(0.5), "xx"), "invalid"),
        4: (AdmitSound(4, sound(0.5), "en", prompt=[301]), "token_out_of_range"),
        5: (Admit(5, [5], 4), "wrong_model"),
    }
    found = run(loop, *(message for message, _ in wrong.values()), AdmitSound(6, sound(0.5), "en"))
    assert isinstance(found.pop(6), list)
    assert found == {request: code for request, (_, code) in wrong.items()}


def test_a_model_of_one_language_hears_too(tmp_path: Path) -> None:
    folder = write_hearer(tmp_path, seed=5, languages=False)
    loop = load_sequences(folder, "transcribe")
    file = sound(3.1, seed=1)
    language, parts = run(loop, AdmitSound(1, file))[1]
    assert language is None
    same(parts, segments(folder, file, return_timestamps=True))


def test_a_whisper_without_its_tokens_of_time_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_hearer(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(ModelRefused, match=r"generation_config.json names no tokens of time"):
        load_sequences(tmp_path, "transcribe")
