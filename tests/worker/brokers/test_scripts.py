"""The scripts that the queue's server runs."""

from __future__ import annotations

from llmtaskpool_worker.brokers.redis.scripts import build, parts


def test_a_script_has_of_what_all_share_what_it_uses_and_what_that_uses() -> None:
    given = parts() | {
        "common": "local p = KEYS[1]\nlocal a, b = 1, 2\nlocal function f()\n  return a\nend\n"
        "local function g() return p end -- not for everybody\n",
        "ended": "",
        "renew": "return f() -- g\n",
    }
    text = build("renew", given).text.decode()
    assert "function f" in text
    assert "local a, b" in text
    assert "KEYS[1]" not in text
    assert "function g" not in text
