"""Translation in LibreTranslate's shape, and summaries: what is asked of the model, and refused."""

from __future__ import annotations

import pytest
from fakes.fake_pool import FakePool
from fakes.http_rig import LetterCodec, serving
from llmtaskpool_worker.http_api.catalog import Model

TRANSLATE = {"q": "Guten Tag", "source": "de", "target": "en"}
PLAIN = {"prefix": [0], "max_tokens": 10}
MANY = {"eng_Latn": 1001, "deu_Latn": 1002}
ABOUT = {
    "de-en": PLAIN | {"sources": ["de"], "targets": ["en"]},
    "many": {
        "sources": ["deu_Latn", "eng_Latn"],
        "targets": ["deu_Latn", "eng_Latn"],
        "source_tokens": MANY,
        "target_tokens": MANY,
        "prefix": [2],
        "max_tokens": 10,
    },
    "marked": {
        "sources": ["eng"],
        "targets": ["deu", "fra"],
        "target_tokens": {"fra": 1003, "deu": 1004},
        "marks": True,
        "prefix": [2],
        "max_tokens": 10,
    },
    "taught": PLAIN
    | {
        "sources": ["de", "en"],
        "targets": ["de", "fr"],
        "begins": {"en-de": "to German: ", "de-fr": "to French: "},
    },
    "silent": PLAIN | {"sources": [], "targets": []},
    "loading": {},
}


def served():
    def model(name, task, about=()):
        codec = LetterCodec()
        return Model(name, task, 1, codec, 256, 0x110000, longest_token=16, about=dict(about))

    shorter = PLAIN | {"begins": {"": "summarize: "}}
    return [
        model("echo", "generate"),
        *(model(name, "translate", about) for name, about in ABOUT.items()),
        model("short", "summarize", shorter),
    ]


@pytest.fixture(scope="module")
def rig():
    with serving(FakePool, served()) as running:
        yield running


def ids(text):
    return tuple(map(ord, text))


def payload(rig):
    return rig.pool.requests[-1].payload


def test_a_text_is_translated_by_the_model_that_has_both_languages(rig):
    answer = rig.post("/translate", TRANSLATE)
    assert answer.status_code == 200, answer.text
    assert rig.pool.requests[-1].model == "de-en"
    assert payload(rig).prompt == ids("Guten Tag")
    assert answer.json() == {"translatedText": "".join(f"{one} " for one in ids("Guten Tag"))}


def test_several_texts_are_answered_in_their_order(rig):
    texts = ["ab", "c"]
    answer = rig.post("/translate", TRANSLATE | {"q": texts}).json()
    assert answer == {"translatedText": ["97 98 ", "99 "]}


def test_a_form_is_taken_as_the_json_is_and_its_key_is_passed_over(rig):
    with rig.client() as client:
        form = TRANSLATE | {"api_key": "theirs", "format": "text", "alternatives": "0"}
        answer = client.post("/translate", data=form)
    assert answer.status_code == 200, answer.text
    assert payload(rig).prompt == ids("Guten Tag")


@pytest.mark.parametrize(
    ("model", "source", "target", "prompt", "prefix"),
    [
        ("many", "en", "de", (1001, *ids("hi")), (2, 1002)),
        ("many", "eng_Latn", "deu_Latn", (1001, *ids("hi")), (2, 1002)),
        ("marked", "en", "fr", (1003, *ids("hi")), (2,)),
        ("marked", "auto", "fra", (1003, *ids("hi")), (2,)),
        ("taught", "en", "de", ids("to German: hi"), (0,)),
    ],
)
def test_each_kind_of_model_is_told_its_languages_in_its_own_way(
    rig, model, source, target, prompt, prefix
):
    body = {"q": "hi", "source": source, "target": target, "model": model}
    answer = rig.post("/translate", body)
    assert answer.status_code == 200, answer.text
    assert (payload(rig).prompt, payload(rig).prefix) == (prompt, prefix)


def test_languages_are_told_with_what_each_goes_into(rig):
    told = {one["code"]: one for one in rig.get("/languages").json()}
    assert told["de"] == {"code": "de", "name": "German", "targets": ["en", "fr"]}
    assert told["en"]["targets"] == ["de", "fr"]


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"target": "xx"}, 400, "target is 'xx', which de-en does not know: send one of en"),
        ({"source": "auto", "model": "many"}, 400, "hears none by itself"),
        ({"format": "html"}, 400, "Send text, without tags"),
        ({"alternatives": 3}, 400, "each text has one translation here"),
        ({"q": ""}, 400, "q can't be used"),
        ({"q": "x" * 300}, 400, "maximum context length is 256"),
        ({"model": "echo"}, 400, "use one that translates (task: translate)"),
        ({"model": "none"}, 404, "does not exist here"),
        ({"model": "silent"}, 400, "source_language and target_language"),
        ({"model": "loading"}, 503, "still loading"),
        ({"model": "taught", "source": "de", "target": "de"}, 400, "it was taught de-fr, en-de"),
    ],
)
def test_what_can_t_be_translated_is_told_with_the_remedy(rig, change, status, says):
    answer = rig.post("/translate", TRANSLATE | change)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert says in answer.json()["error"]


def test_where_nothing_translates_it_says_what_to_serve():
    with serving(FakePool, []) as rig:
        answer = rig.post("/translate", TRANSLATE)
        assert answer.status_code == 404
        assert "serve one with task=translate" in answer.json()["error"]


def finished(rig, body):
    submitted = rig.post("/v1/tasks", body)
    assert submitted.status_code == 202, submitted.text
    return rig.get(f"/v1/tasks/{submitted.json()['id']}?wait=60").json()


def test_both_are_kinds_of_tasks(rig):
    arguments = {"source": "de", "target": "en"}
    body = {"kind": "translate", "model": "de-en", "input": "ab", "arguments": arguments}
    assert finished(rig, body)["result"]["text"] == "97 98 "
    told = {"kind": "summarize", "model": "short", "input": "ab", "arguments": {"max_tokens": 11}}
    assert finished(rig, told)["result"]["finish_reason"] == "length"
    assert payload(rig).prompt == ids("summarize: ab"), "as the model was taught"
    assert payload(rig).prefix == (0,)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"kind": "translate", "model": "de-en", "input": ["a", "b"]}, "input"),
        ({"kind": "translate", "model": "de-en", "input": "a"}, "arguments.target"),
        ({"kind": "translate", "model": "short", "input": "a"}, "model"),
        ({"kind": "summarize", "model": "short", "input": ""}, "input"),
        ({"kind": "summarize", "model": "short", "arguments": {"input": "a"}}, "arguments.input"),
    ],
)
def test_a_task_that_can_t_be_one_names_its_field(rig, body, param):
    answer = rig.post("/v1/tasks", body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
