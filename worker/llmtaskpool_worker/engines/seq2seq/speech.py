"""What a model that writes down speech reads: windows of sound, one after the other (Whisper)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from llmtaskpool_worker.disclosure import where_raised
from llmtaskpool_worker.engines.admission import step_peak
from llmtaskpool_worker.engines.memory_plan import no_step
from llmtaskpool_worker.engines.protocol import Admit, AdmitSound, FromEngine, Values
from llmtaskpool_worker.engines.seq2seq.loop import Fault, PeakOf
from llmtaskpool_worker.engines.seq2seq.parts import Part, Times, parts_of
from llmtaskpool_worker.engines.seq2seq.rules import Rules
from llmtaskpool_worker.engines.seq2seq.running import Writing
from llmtaskpool_worker.engines.seq2seq.unpacking import Unpacking
from llmtaskpool_worker.engines.sound_files import (
    HEARD_RATE,
    SECONDS_MAX,
    BadSound,
    heard,
    seconds_of,
)
from llmtaskpool_worker.engines.weights import ModelRefused

log = logging.getLogger("llmtaskpool.engine")
UNPACKED_BYTES = 3 * 4 * HEARD_RATE
"""Of a second of sound: its samples in float32, in blocks and whole, and on their way to 16 kHz."""
WAIT_SECONDS = 0.2
"""So long a step waits for a file to be decoded, where nothing else is to be done."""


@dataclass(slots=True)
class _Sound:
    """One file: its features (mels, frames), and how far it has been written down."""

    wanted: AdmitSound
    seconds: float
    decoding: Future[Tensor] | None = None
    """None: there is no room for it yet."""
    features: Tensor | None = None
    seek: int = 0
    language: str | None = None
    timestamps: bool = False
    forced: list[int] = field(default_factory=list)
    """Tokens that come next, whatever the model would say."""
    hears_language: bool = False
    """Whether the next token is the language."""
    begin: int = 0
    """Where in the tokens what is said begins."""
    parts: list[tuple[Part, float]] = field(default_factory=list)
    """And the mean log-probability of what was drawn of their window, its end among it."""
    tokens: int = 0


class Speech:
    """A Reader of sound. ``asked`` is the model's GenerationConfig."""

    def __init__(
        self,
        *,
        config: Any,
        asked: Any,
        extractor: WhisperFeatureExtractor,
        rules: Rules,
        device: torch.device,
        dtype: torch.dtype,
        windows: int,
    ) -> None:
        self._asked, self._extractor, self._rules = asked, extractor, rules
        self._device, self._dtype = device, dtype
        self._size = int(config.max_source_positions)
        self._window = 2 * self._size
        if extractor.nb_max_frames != self._window:
            raise ModelRefused(
                f"its preprocessor_config.json makes windows of {extractor.nb_max_frames} frames, "
                f"and config.json asks for {self._window}: its files belong to different models"
            )
        self.budget = windows * self._size
        self.context_length = self.most = int(config.max_target_positions)
        self._below = int(asked.eos_token_id)
        no_times = int(asked.no_timestamps_token_id)
        precision = extractor.chunk_length / self._size
        self._no_times, self._times = no_times, Times(no_times + 1, precision, 2)
        self._in_order = WhisperTimeStampLogitsProcessor(asked, begin_index=0)
        tokens = getattr(asked, "lang_to_id", None) or {}
        self._languages = {name.strip("<|>"): int(token) for name, token in tokens.items()}
        self._codes = {token: name for name, token in self._languages.items()}
        self.about: dict[str, Any] = {
            "languages": sorted(self._languages),
            "text_below": self._below,
            "window_seconds": extractor.chunk_length,
        }
        self._threads = ThreadPoolExecutor(1, "decode-sound")
        self._threads.submit(int)  # made now: a thread is as nice as who makes it (nice_steps.py)
        self._unpacking = Unpacking()
        self._sounds: dict[int, _Sound] = {}

    @property
    def shortest(self) -> tuple[int, int]:
        """All windows are as long."""
        return self.most, self._size

    def fit_into(self, room: int, peak_of: PeakOf) -> int:
        """See Reader: by one window of noise."""
        window = max(1, peak_of(self.sample()[0], self._size))
        if window > room:
            raise ModelRefused(no_step(window, room))
        windows = min(self.budget // self._size, room // window)
        self.budget = windows * self._size
        return windows * window

    def fit_beside(self, room: int) -> int:
        """Files that are unpacked have ``room`` bytes together."""
        samples = torch.zeros(self._extractor.n_samples).numpy()
        with step_peak(torch.device("cpu")) as peak:
            self._extractor(samples, sampling_rate=HEARD_RATE, return_tensors="pt")
        second = UNPACKED_BYTES + math.ceil(peak() / self._extractor.chunk_length)
        self._unpacking = Unpacking(room, second)
        if self._unpacking.longest < self._extractor.chunk_length:
            raise ModelRefused(no_step(second * self._extractor.chunk_length, room))
        if self._unpacking.longest < SECONDS_MAX:
            self.about["most_seconds"] = math.floor(self._unpacking.longest)
        return room

    def sample(self) -> tuple[dict[str, Tensor], list[int]]:
        """One window of noise."""
        draw = torch.Generator().manual_seed(0)
        noise = torch.rand(1, self._extractor.feature_size, self._window, generator=draw) - 0.5
        return {"input_features": noise.to(self._device, self._dtype)}, [self._size]

    def taken(self, message: Admit | AdmitSound) -> Writing | Fault:
        """A file whose decoding begins now, or why it can't be run."""
        if isinstance(message, Admit):
            return "wrong_model", "this model hears; it reads no texts"
        if message.language is not None and self._codes and message.language not in self._languages:
            return "invalid", "the model does not know this language"
        if message.prompt and not 0 <= min(message.prompt) <= max(message.prompt) < self._below:
            return "token_out_of_range", f"a token of the prompt is not in 0 to {self._below - 1}"
        like = Admit(
            message.id,
            [],
            self.most,
            temperature=message.temperature,
            seed=message.seed,
            logprobs=0,
        )
        try:
            seconds = seconds_of(message.file)
        except BadSound as error:
            return "bad_sound", f"file {error}"
        if seconds > self._unpacking.longest:
            return "too_large", (
                f"file is {seconds:.0f} s long, and memory holds {self._unpacking.longest:.0f} s "
                "here: send it in several files"
            )
        sound = _Sound(message, seconds)
        self._come(message.id, sound)
        return Writing(like, [], notes=sound, size=self._size, most=self.most)

    def _come(self, request_id: int, sound: _Sound) -> None:
        self._sounds[request_id] = sound
        self._decode(self._unpacking.come(request_id, sound.seconds))

    def _decode(self, begun: Sequence[int]) -> None:
        for request_id in begun:
            sound = self._sounds[request_id]
            sound.decoding = self._threads.submit(self._features, sound.wanted.file)

    def _features(self, file: bytes) -> Tensor:
        """(mels, frames): of a whole window for what fits into one, else of all there is."""
        samples = heard(file)
        long = len(samples) > self._extractor.n_samples
        found = self._extractor(
            samples,
            sampling_rate=HEARD_RATE,
            truncation=False,
            padding="longest" if long else "max_length",
            return_tensors="pt",
        )
        features: Tensor = found.input_features[0]
        return features.to(self._dtype)

    def prepared(self, writing: Writing, *, wait: bool) -> bool | Fault:
        """Whether its file is decoded."""
        sound: _Sound = writing.notes
        if sound.features is not None:
            return True
        if writing.request.id not in self._sounds:  # it was put aside
            self._come(writing.request.id, sound)
        if sound.decoding is None or (not wait and not sound.decoding.done()):
            return False
        try:
            sound.features = sound.decoding.result(WAIT_SECONDS)
        except TimeoutError:
            return False
        except BadSound as error:
            return "bad_sound", f"file {error}"
        except Exception as error:
            log.error("sound can't be decoded: %s", where_raised(error))  # noqa: TRY400
            return "bad_sound", "file can't be decoded: send it as WAV"
        sound.timestamps = sound.wanted.timestamps or sound.features.shape[1] > self._window
        if not writing.tokens:
            self._begin(writing, sound)
        return True

    def _begin(self, writing: Writing, sound: _Sound) -> None:
        """The next window: what comes before all that is said in it."""
        asked, wanted = self._asked, sound.wanted
        tokens = [int(asked.decoder_start_token_id)]
        if wanted.prompt:
            before = getattr(asked, "prev_sot_token_id", None) or asked.suppress_tokens[-2]
            tokens = [int(before), *wanted.prompt[-(self.most // 2 - 2) :], *tokens]
        after = [] if sound.timestamps else [self._no_times]
        if self._languages:
            after.insert(
                0, int(asked.task_to_id["translate" if wanted.translate else "transcribe"])
            )
            sound.language = sound.language or wanted.language
            if sound.language is not None:
                tokens.append(self._languages[sound.language])
        sound.hears_language = bool(self._languages) and sound.language is None
        if sound.hears_language:
            sound.forced = after
            sound.begin = len(tokens) + 1 + len(after)
        else:
            tokens += after
            sound.begin = len(tokens)
        writing.tokens, writing.drawn, writing.prefix = tokens, 0, len(tokens)
        writing.logprob = 0.0

    def given(self, sequences: Sequence[Writing]) -> dict[str, Tensor]:
        """(rows, mels, frames of a window)."""
        rows = []
        for one in sequences:
            assert one.notes.features is not None  # noqa: S101 - prepared comes first
            piece = one.notes.features[:, one.notes.seek : one.notes.seek + self._window]
            rows.append(torch.nn.functional.pad(piece, (0, self._window - piece.shape[1])))
        return {"input_features": torch.stack(rows).to(self._device)}

    def ruled(self, writing: Writing, logits: Tensor) -> Tensor:
        """What Whisper's rules leave of what may come next."""
        sound: _Sound = writing.notes
        if sound.hears_language:
            return _only(logits, list(self._codes))
        if sound.forced:
            return _only(logits, sound.forced[:1])
        first = len(writing.tokens) == sound.begin
        logits = self._rules.ruled(writing.tokens, logits, first=first)
        if not sound.timestamps:
            return logits
        self._in_order.set_begin_index(sound.begin)
        ids = torch.tensor([writing.tokens], device=logits.device)
        ordered: Tensor = self._in_order(ids, logits.float()[None])[0]
        return ordered

    def drawn(self, writing: Writing, token: int) -> bool:
        """Only what is said is told."""
        sound: _Sound = writing.notes
        if sound.hears_language:
            sound.hears_language, sound.language = False, self._codes[token]
            writing.logprob = 0.0  # nothing is said yet
        elif sound.forced:
            sound.forced = sound.forced[1:]
        return token < self._below

    def ended(self, writing: Writing) -> bool:
        """A window has been written down; whether it was the last."""
        sound: _Sound = writing.notes
        assert sound.features is not None  # noqa: S101 - prepared comes first
        total = sound.features.shape[1]
        said = writing.tokens[sound.begin :]
        length = min(total - sound.seek, self._window)
        second = HEARD_RATE / self._extractor.hop_length
        parts, done = parts_of(said, self._times, offset=sound.seek / second, heard=length)
        sound.parts += [(part, writing.logprob / (len(said) + 1)) for part in parts]
        sound.tokens += len(said)
        sound.seek += done if done > 0 else length  # what says nothing is not heard for ever
        if sound.seek >= total:
            return True
        self._begin(writing, sound)
        return False

    def conclusion(self, writing: Writing) -> FromEngine | None:
        """All parts, and the language."""
        sound: _Sound = writing.notes
        parts = [[*part, round(logprob, 4)] for part, logprob in sound.parts]
        return Values(writing.request.id, [sound.language, parts], sound.tokens)

    def put_aside(self, writing: Writing) -> None:
        """Its file is unpacked anew when it goes on."""
        self.forget(writing)
        writing.notes.features = writing.notes.decoding = None

    def forget(self, writing: Writing) -> None:
        """Nobody waits for its file any more."""
        if self._sounds.pop(writing.request.id, None) is None:
            return
        if writing.notes.decoding is not None:
            writing.notes.decoding.cancel()
        self._decode(self._unpacking.leave(writing.request.id))


def _only(logits: Tensor, tokens: list[int]) -> Tensor:
    """``logits`` where nothing but ``tokens`` may come."""
    places = torch.tensor(tokens, device=logits.device)
    barred = torch.full_like(logits, -math.inf)
    return barred.index_copy(0, places, logits[places])
