"""From a form or a task with a file of sound to what a model is to hear, and back to a client.

Shapes: OpenAI's audio routes (docs/api.md).
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.engines.sound_files import BadSound, seconds_of
from llmtaskpool_worker.http_api.catalog import Model, off_loop
from llmtaskpool_worker.http_api.errors import invalid
from llmtaskpool_worker.http_api.forms import Form
from llmtaskpool_worker.http_api.one_pass_api import duration_usage
from llmtaskpool_worker.http_api.openai_schema import CommonFields, parse
from llmtaskpool_worker.scheduling.task import Evaluated, Transcribe
from llmtaskpool_worker.text.languages import matching

FormatName = Literal["json", "text", "srt", "verbose_json", "vtt"]
BIG_FILE = 1 << 20
"""What off_loop takes for a long text: a header is read beside the loop, whatever its file."""
PROMPT_LETTERS = 4096
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Text = Annotated[str, Field(strict=True)]


class SpeechFields(CommonFields):
    """What a form and a task may hold beside the file."""

    language: Annotated[_Text, Field(min_length=2, max_length=32)] | None = Field(
        None,
        description="the code of the spoken language, such as en; left out it is heard",
    )
    prompt: Annotated[_Text, Field(max_length=PROMPT_LETTERS)] | None = Field(
        None, description=f"what was said before, a text of at most {PROMPT_LETTERS} letters"
    )
    temperature: _Number = Field(0.0, ge=0, le=1, description="a number from 0 to 1")


class SpeechRequest(SpeechFields):
    """The form of POST /v1/audio/transcriptions and /v1/audio/translations, without its file."""

    response_format: FormatName = Field(
        "json", description="one of json, text, srt, verbose_json, vtt"
    )
    timestamp_granularities: Annotated[list[Literal["segment"]], Field(max_length=1)] = Field(
        default_factory=list,
        description='"segment": no times of single words are told here',
    )


class TranscribeArguments(SpeechFields):
    """The arguments of a task of kind transcribe, beside its input, a file in base64."""

    translate: Annotated[bool, Field(strict=True)] = Field(
        False, description="true for English, whatever is spoken, or false"
    )
    timestamps: Annotated[bool, Field(strict=True)] = Field(
        False, description="true for parts with their times, or false"
    )


_NUMBERS = ("temperature", "weight", "timeout_seconds", "queue_timeout_seconds")
_PASSED_OVER = frozenset({"stream", "chunking_strategy", "include", "known_speaker_names"})
"""Fields that OpenAI passes over for Whisper too."""


def parse_speech(form: Form) -> tuple[SpeechRequest, bytes]:
    """A checked form, and its file. Raises ApiError 400 naming the field."""
    given: dict[str, Any] = {}
    for name, values in form.fields.items():
        plain = name.removesuffix("[]")
        if plain in _PASSED_OVER:
            continue
        if plain == "timestamp_granularities":
            given[plain] = values
        elif len(values) > 1:
            raise invalid(plain[:64], f"{plain[:64]} comes {len(values)} times: send it once.")
        elif plain in _NUMBERS:
            given[plain] = _number(plain, values[0])
        else:
            given[plain] = values[0]
    checked: SpeechRequest = parse(SpeechRequest, given)
    if set(form.files) != {"file"}:
        raise invalid(
            "file",
            "file is missing: send one file of sound, with its name."
            if "file" not in form.files
            else "The form holds files beside file: send one.",
            code="invalid_missing",
        )
    return checked, form.files["file"]


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise invalid(name, f"{name} is {shown(text)}: send a number.") from None


async def transcription(
    model: Model, fields: SpeechFields, file: bytes, *, translate: bool, timestamps: bool
) -> Transcribe:
    """What a model is to hear; of the file its header is read. Raises ApiError naming the field."""
    codec = model.ready_codec()
    known = model.about.get("languages", ())
    language = fields.language
    if language is not None and known:
        language = matching(language, known)
        if language is None:
            raise invalid(
                "language",
                f"language is {shown(fields.language)}, which {model.name} does not know: send one "
                f"of {', '.join(known[:8])} and others of ISO 639-1, or leave it out.",
            )
    if translate and not known:
        raise invalid(
            "model",
            f"model is {shown(model.name)}, which knows one language and translates nothing: use "
            "one of many languages.",
        )
    try:
        seconds = await off_loop(BIG_FILE, lambda: seconds_of(file))
    except BadSound as error:
        raise invalid("file", f"file {error}.", code="bad_sound") from None
    most = model.about.get("most_seconds")
    if most is not None and seconds > most:
        raise invalid(
            "file",
            f"file is {seconds:.0f} s long, and the memory of this model holds {most:.0f} s: send "
            "it in several files.",
            code="too_large",
        )
    prompt: tuple[int, ...] = ()
    if fields.prompt and fields.prompt.strip():
        text = " " + fields.prompt.strip()
        below = model.about["text_below"]
        tokens = await off_loop(len(text), lambda: codec.encode_document(text))
        prompt = tuple(token for token in tokens if token < below)
    return Transcribe(
        file, seconds, language, translate, timestamps, prompt, fields.temperature, None
    )


async def task_transcription(model: Model, given: Mapping[str, Any], file: object) -> Transcribe:
    """Of a task: ``file`` is its input, in base64. Raises ApiError naming the field."""
    wanted: TranscribeArguments = parse(TranscribeArguments, given)
    if not isinstance(file, str):
        raise invalid("file", "file must be a text: send the bytes of a file of sound in base64.")
    text = file.partition(",")[2] if file.startswith("data:") else file
    try:
        packed = await off_loop(len(text), lambda: b64decode(text, validate=True))
    except ValueError:
        raise invalid(
            "file", "file is not base64: send the bytes of a file of sound in base64."
        ) from None
    return await transcription(
        model, wanted, packed, translate=wanted.translate, timestamps=wanted.timestamps
    )


def answered(result: Evaluated, wanted: FormatName, task: str) -> tuple[str, str | dict[str, Any]]:
    """The answer's type and itself, as a client asked for it."""
    value = result.value
    if wanted in _WRITTEN:
        kind, write = _WRITTEN[wanted]
        return kind, write(value)
    usage = duration_usage(result)
    if wanted == "json":
        return "application/json", {"text": value["text"], "usage": usage}
    told = {"task": task, "language": value["language"], "duration": value["duration"]}
    told |= {"text": value["text"], "segments": value["segments"], "usage": usage}
    return "application/json", told


def _plain(value: Mapping[str, Any]) -> str:
    return f"{value['text']}\n"


def _srt(value: Mapping[str, Any]) -> str:
    return "".join(
        f"{number}\n{_clock(one['start'], ',')} --> {_clock(one['end'], ',')}\n{_line(one)}\n\n"
        for number, one in enumerate(value["segments"], 1)
    )


def _vtt(value: Mapping[str, Any]) -> str:
    return "WEBVTT\n\n" + "".join(
        f"{_clock(one['start'], '.')} --> {_clock(one['end'], '.')}\n{_line(one)}\n\n"
        for one in value["segments"]
    )


def _line(part: Mapping[str, Any]) -> str:
    """Without what would be taken for a time."""
    return str(part["text"]).strip().replace("-->", "->")


def _clock(seconds: float, point: str) -> str:
    """00:01:02,500."""
    whole = round(seconds * 1000)
    hours, rest = divmod(whole, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"


_WRITTEN: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "text": ("text/plain; charset=utf-8", _plain),
    "srt": ("text/plain; charset=utf-8", _srt),
    "vtt": ("text/vtt; charset=utf-8", _vtt),
}
