"""OpenAI's audio routes: their forms and answers, and what is refused before it is decoded."""

from __future__ import annotations

import base64
import struct

import openai
import pytest
from fakes.fake_pool import FakePool
from fakes.http_rig import LetterCodec, serving
from fakes.sounds import silence, sound
from llmtaskpool_worker.http_api.catalog import Model
from llmtaskpool_worker.scheduling.task import Evaluated

ABOUT = {"languages": ["de", "en"], "text_below": 1 << 21, "window_seconds": 30}
PARTS = [
    {"id": 0, "start": 0.0, "end": 1.5, "text": " Guten Tag.", "tokens": [1, 2]},
    {"id": 1, "start": 61.25, "end": 3725.5, "text": " a --> b", "tokens": [3]},
]
VALUE = {"text": "Guten Tag. a --> b", "language": "de", "duration": 2.25, "segments": PARTS}
SOUND = sound(1.0)


async def hear(run):
    run.start()
    run.succeed(Evaluated(VALUE, run.request.payload.size))


def served():
    def model(name, task, about):
        codec = LetterCodec()
        return Model(name, task, 1, codec, 256, 0x110000, longest_token=16, about=about)

    return [
        model("ear", "transcribe", ABOUT),
        model("one", "transcribe", ABOUT | {"languages": []}),
        model("echo", "generate", {}),
    ]


@pytest.fixture(scope="module")
def rig():
    with serving(lambda clock: FakePool(clock, script=hear), served()) as running:
        yield running


def send(rig, path="transcriptions", file=SOUND, **fields):
    files = {} if file is None else {"file": ("a.wav", file)}
    with rig.client() as client:
        data = {"model": "ear"} | fields
        if not files:
            return client.post(
                f"/v1/audio/{path}", files={name: (None, v) for name, v in data.items()}
            )
        return client.post(f"/v1/audio/{path}", data=data, files=files)


def payload(rig):
    return rig.pool.requests[-1].payload


def test_the_openai_client_gets_what_was_said_in_each_form(rig):
    client = openai.OpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0)
    ask = client.audio.transcriptions.create
    assert ask(model="ear", file=("a.wav", SOUND)).text == VALUE["text"]
    assert payload(rig).file == SOUND
    assert payload(rig).seconds == 1.0
    assert not payload(rig).timestamps
    whole = ask(
        model="ear",
        file=("a.wav", SOUND),
        language="de",
        prompt="was er sagte:",
        temperature=0.5,
        response_format="verbose_json",
        timestamp_granularities=["segment"],
    )
    assert (whole.language, whole.duration) == ("de", 2.25)
    assert [(one.start, one.end, one.text) for one in whole.segments] == [
        (one["start"], one["end"], one["text"]) for one in PARTS
    ]
    asked = payload(rig)
    assert asked.prompt == tuple(map(ord, " was er sagte:"))
    assert (asked.language, asked.temperature, asked.timestamps) == ("de", 0.5, True)
    assert client.audio.translations.create(model="ear", file=("a.wav", SOUND)).text
    assert payload(rig).translate


def test_subtitles_have_their_own_forms(rig):
    assert send(rig, response_format="text").text == "Guten Tag. a --> b\n"
    assert send(rig, response_format="srt").text == (
        "1\n00:00:00,000 --> 00:00:01,500\nGuten Tag.\n\n"
        "2\n00:01:01,250 --> 01:02:05,500\na -> b\n\n"
    )
    answer = send(rig, response_format="vtt")
    assert answer.headers["content-type"] == "text/vtt; charset=utf-8"
    assert answer.text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nGuten Tag.\n\n")


def test_json_tells_what_openai_s_does(rig):
    told = {"text": VALUE["text"], "usage": {"type": "duration", "seconds": 3}}
    assert send(rig, stream="true").json() == told


def lying_header() -> bytes:
    """A WAV file whose header promises a thousand hours."""
    data = bytearray(sound(0.1))
    data[40:44] = struct.pack("<I", 0xFFFFFFF0)
    data[4:8] = struct.pack("<I", 0xFFFFFFFF)
    return bytes(data)


@pytest.mark.parametrize(
    ("fields", "status", "param", "says"),
    [
        ({"file": None}, 400, "file", "send one file of sound"),
        ({"file": b"no sound"}, 400, "file", "send one of WAV, FLAC, OGG, MP3"),
        ({"file": b""}, 400, "file", "send one of WAV, FLAC, OGG, MP3"),
        ({"file": silence(3600)}, 400, "file", "is 3600 s long: send at most 1800 s"),
        ({"file": sound(0.1, channels=9)}, 400, "file", "has 9 channels: send at most 8"),
        ({"file": sound(0.0)}, 400, "file", "holds no sound"),
        ({"language": "xx"}, 400, "language", "send one of de, en"),
        ({"temperature": "hot"}, 400, "temperature", "send a number"),
        ({"temperature": "2"}, 400, "temperature", "a number from 0 to 1"),
        ({"response_format": "docx"}, 400, "response_format", "one of json, text, srt"),
        ({"timestamp_granularities[]": "word"}, 400, "timestamp_granularities[0]", "single words"),
        ({"model": "echo"}, 400, "model", "use one that writes down what is said"),
        ({"model": "none"}, 404, "model", "does not exist here"),
        ({"colour": "red"}, 400, "colour", "colour"),
    ],
)
def test_what_can_t_be_heard_is_refused_at_once_with_the_remedy(rig, fields, status, param, says):
    before = len(rig.pool.requests)
    answer = send(rig, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert says in error["message"]
    assert len(rig.pool.requests) == before


def test_a_header_that_lies_about_its_length_is_no_way_around_the_limit(rig):
    answer = send(rig, file=lying_header())
    heard = payload(rig).seconds if answer.status_code == 200 else 0.0
    assert heard <= 1.0


def test_a_model_of_one_language_translates_nothing_and_says_so(rig):
    answer = send(rig, "translations", model="one")
    assert answer.status_code == 400
    assert "use one of many languages" in answer.json()["error"]["message"]
    assert send(rig, model="one", language="en").status_code == 200


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"--x\r\n", "multipart/form-data; boundary=x", 400),
        (b"", "multipart/form-data; boundary=x", 400),
        (b"no boundary", "multipart/form-data; boundary=x", 400),
        (b"--x\r\n\r\n--x--\r\n" * 2, "multipart/form-data", 415),
    ],
)
def test_what_is_no_form_is_told_so(rig, body, kind, status):
    with rig.client() as client:
        headers = {"content-type": kind}
        answer = client.post("/v1/audio/transcriptions", content=body, headers=headers)
    assert answer.status_code == status
    assert "multipart/form-data" in answer.json()["error"]["message"]


def test_a_form_of_very_many_fields_is_refused(rig):
    answer = send(rig, **{f"field{n}": "x" for n in range(80)})
    assert answer.status_code == 400
    assert "more than 64 fields" in answer.json()["error"]["message"]


def test_it_is_a_kind_of_task_too(rig):
    packed = base64.b64encode(SOUND).decode()
    arguments = {"language": "de", "timestamps": True}
    body = {"kind": "transcribe", "model": "ear", "input": packed, "arguments": arguments}
    submitted = rig.post("/v1/tasks", body)
    assert submitted.status_code == 202, submitted.text
    assert payload(rig).timestamps
    task = rig.get(f"/v1/tasks/{submitted.json()['id']}?wait=60").json()
    assert task["result"] == VALUE | {"usage": {"type": "duration", "seconds": 3}}
    for change, param in (
        ({"input": "no base64"}, "input"),
        ({"input": base64.b64encode(b"no sound").decode()}, "input"),
        ({"arguments": {"language": "xx"}}, "arguments.language"),
        ({"arguments": {"timestamps": "yes"}}, "arguments.timestamps"),
    ):
        answer = rig.post("/v1/tasks", body | change)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
