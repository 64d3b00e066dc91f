"""Keys: what is open, what is not, and how keys are changed."""

from __future__ import annotations

import pytest
from fakes.http_rig import KEY, TOKEN, serving, wait_until
from llmtaskpool_worker.http_api import auth
from llmtaskpool_worker.http_api.auth import Keys, KeysUnreadable
from pydantic import SecretStr


@pytest.fixture(scope="module")
def rig():
    with serving(api_keys=(KEY, "second-key"), control_tokens=(TOKEN,)) as running:
        yield running


ROUTES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/echo"),
    ("POST", "/v1/tasks"),
    ("GET", "/v1/tasks/x"),
    ("DELETE", "/v1/tasks/x"),
    ("GET", "/v1/tasks/x/events"),
    ("GET", "/unknown"),
    ("GET", "/livez/"),
    ("GET", "/metrics/x"),
    ("OPTIONS", "/v1/models"),
    ("GET", "//livez"),
    ("GET", "/v1/../livez"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer ", "Basic data-key", "data-key"])
def test_every_route_but_the_open_ones_answers_401_without_a_key(rig, method, path, header):
    line = "" if header is None else f"authorization: {header}\r\n"
    request = f"{method} {path} HTTP/1.1\r\nhost: x\r\n{line}\r\n"
    status, headers, answer = rig.raw(request.encode())
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    assert answer["error"]["code"] == "invalid_api_key"
    assert "x-request-id" in headers


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_the_listed_routes_are_open(rig, path):
    assert rig.get(path).status_code == 200


@pytest.mark.parametrize("key", [KEY, "second-key"])
def test_each_of_several_keys_is_valid(rig, key):
    assert rig.get("/v1/models", headers={"authorization": f"bearer {key}"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/control/v1/state"),
        ("PUT", "/control/v1/threads"),
        ("POST", "/control/v1/drain"),
        ("GET", "/livez"),
        ("GET", "/unknown"),
    ],
)
def test_the_control_port_has_its_own_token_and_nothing_open(rig, method, path):
    for headers in ({}, {"authorization": f"Bearer {KEY}"}):
        assert rig.control(method, path, headers=headers).status_code == 401
    if method == "GET" and path.startswith("/control"):
        right = {"authorization": f"Bearer {TOKEN}"}
        assert rig.control(method, path, headers=right).status_code == 200


def test_the_control_token_opens_no_data_route(rig):
    answer = rig.get("/v1/models", headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 401


def test_a_key_file_is_read_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(auth, "REREAD_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text("old\n")
    with serving(api_keys_file=file) as rig:

        def status(key: str) -> int:
            return rig.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

        assert (status("old"), status("new")) == (200, 401)
        file.write_text("old\nnew\n")
        wait_until(lambda: status("new") == 200, "the new key is valid")
        assert status("old") == 200
        file.write_text("new\n")
        wait_until(lambda: status("old") == 401, "the old key is not valid any more")
        file.unlink()
        assert status("new") == 200


@pytest.mark.parametrize(
    "content",
    [None, "", " \n", "# none yet\n\n", "#commented-out-key\n", "key # of Ann\n", "a b\n"],
)
def test_a_key_file_without_a_key_is_an_error_at_the_start_and_not_an_open_server(
    tmp_path, content
):
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(KeysUnreadable, match="LLMTASKPOOL_API_KEYS_FILE"):
        Keys((), file, setting="LLMTASKPOOL_API_KEYS_FILE", clock=lambda: 0.0)


def test_without_keys_every_request_passes():
    keys = Keys((), None, setting="X", clock=lambda: 0.0)
    assert keys.allow(None)
    assert not Keys((SecretStr("k"),), None, setting="X", clock=lambda: 0.0).allow(None)


def test_a_key_is_a_line_and_words_of_comments_are_no_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_bytes(
        b"\xef\xbb\xbf# keys of team a, Ann's first\r\n\r\n  first  \r\n #second\nthird"
    )
    keys = Keys((), file, setting="X", clock=lambda: 0.0)
    assert keys.allow("first")
    assert keys.allow("third")
    for word in ("#", "keys", "of", "team", "a,", "Ann's", "#second", "second", ""):
        assert not keys.allow(word), word


@pytest.mark.parametrize("content", ["# all gone\n", "new # of Ann\n", ""])
def test_a_change_that_leaves_no_key_leaves_the_old_ones_and_is_told_once_in_the_log(
    tmp_path, monkeypatch, caplog, content
):
    monkeypatch.setattr(auth, "REREAD_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text("old\n")
    keys = Keys((), file, setting="LLMTASKPOOL_API_KEYS_FILE", clock=lambda: 0.0)
    file.write_text(content)
    for _ in range(3):
        assert keys.allow("old")
        assert not keys.allow("new")
        assert not keys.allow("gone")
    (told,) = [one for one in caplog.records if one.name == "llmtaskpool.keys"]
    assert told.setting == "LLMTASKPOOL_API_KEYS_FILE"
    assert "Ann" not in told.why
    file.write_text("# mended\nnewest\n")
    assert keys.allow("newest")
    assert not keys.allow("old")
