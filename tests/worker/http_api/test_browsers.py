"""Pages in browsers: what a preflight and a script's request are answered."""

from __future__ import annotations

import pytest
from fakes.http_rig import KEY, serving
from llmtaskpool_worker.assembly import settings
from llmtaskpool_worker.assembly.settings import SettingsError

PAGE = "https://chat.example.org"
WITH_KEY = {"authorization": f"Bearer {KEY}"}
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


@pytest.fixture(scope="module")
def rig():
    with serving(api_keys=(KEY,), cors_origins=(PAGE, "http://localhost:3000")) as running:
        yield running


def preflight(rig, **changed):
    with rig.client() as http:
        return http.options("/v1/chat/completions", headers=PREFLIGHT | changed)


def test_a_preflight_needs_no_key_and_allows_what_the_openai_package_sends(rig):
    answer = preflight(rig)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    assert "origin" in answer.headers["vary"].lower()
    assert "x-request-id" in answer.headers


def test_a_script_can_read_its_answer_and_the_headers_that_matter(rig):
    answer = rig.post("/v1/chat/completions", CHAT, headers={"origin": PAGE} | WITH_KEY)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    exposed = answer.headers["access-control-expose-headers"].lower()
    assert "x-request-id" in exposed
    assert "retry-after" in exposed
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [("/v1/chat/completions", {}, 401), ("/v1/nothing", WITH_KEY, 404)],
)
def test_a_script_can_read_errors_too(rig, path, headers, status):
    answer = rig.post(path, CHAT, headers={"origin": PAGE} | headers)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == PAGE


def test_an_answer_that_nobody_foresaw_can_be_read_by_a_script_too():
    from fakes.fake_pool import FakePool

    class Broken(FakePool):
        def submit(self, _request):
            raise RuntimeError

    with serving(Broken, cors_origins=(PAGE,)) as rig:
        answer = rig.post("/v1/chat/completions", CHAT, headers={"origin": PAGE})
        assert answer.status_code == 500
        assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    "changed",
    [
        {"origin": "https://evil.example.org"},
        {"origin": "null"},
        {"origin": PAGE + ".evil.example.org"},
        {"access-control-request-method": "PUT"},
    ],
)
def test_another_origin_or_method_is_refused_in_our_shape(rig, changed):
    answer = preflight(rig, **changed)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in answer.headers
    if "origin" in changed:
        answer = rig.post("/v1/chat/completions", CHAT, headers=changed | WITH_KEY)
        assert "access-control-allow-origin" not in answer.headers


def test_any_origin_is_allowed_by_a_star_and_never_with_credentials():
    with serving(cors_origins=("*",)) as rig:
        for headers in ({"origin": PAGE}, {"origin": PAGE, "cookie": "a=b"}):
            answer = rig.post("/v1/chat/completions", CHAT, headers=headers)
            assert answer.headers["access-control-allow-origin"] in ("*", PAGE)
            assert "access-control-allow-credentials" not in answer.headers
        assert preflight(rig).headers["access-control-allow-origin"] == "*"


def test_without_the_setting_nothing_is_said_of_origins_and_preflights_need_a_key():
    with serving(api_keys=(KEY,)) as rig:
        assert preflight(rig).status_code == 401
        answer = rig.post("/v1/chat/completions", CHAT, headers={"origin": PAGE} | WITH_KEY)
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["chat.example.org", PAGE + "/", "ftp://x", "null", "https://"])
def test_what_is_no_origin_is_refused_at_the_start(origin):
    with pytest.raises(SettingsError, match="LLMTASKPOOL_CORS_ORIGINS"):
        settings.load(cors_origins=f"{PAGE}, {origin}")
