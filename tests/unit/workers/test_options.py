"""What a pool's spec says to its workers."""

from __future__ import annotations

import pytest
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.workers.options import environment_of
from llmtaskpool_worker.assembly import settings
from pydantic import ValidationError


def spec(**auth) -> LLMTaskPoolSpec:
    return LLMTaskPoolSpec.model_validate({"auth": auth})


def test_origins_of_pages_reach_the_worker_as_its_setting_reads_them(monkeypatch):
    origins = ["https://chat.example.org", "http://localhost:3000", "http://[::1]:80", "*"]
    for name, value in environment_of(spec(corsOrigins=origins)).items():
        monkeypatch.setenv(name, value)
    assert settings.load().cors_origins == tuple(origins)


def test_without_origins_nothing_is_said_of_them():
    assert "LLMTASKPOOL_CORS_ORIGINS" not in environment_of(spec())


@pytest.mark.parametrize("origin", ["chat.example.org", "https://a/", "https://a,b", "null", ""])
def test_what_is_no_origin_is_refused_in_the_spec(origin):
    with pytest.raises(ValidationError):
        spec(corsOrigins=[origin])


def test_the_share_of_the_aged_and_the_patience_of_tasks_reach_the_worker(monkeypatch):
    said = LLMTaskPoolSpec.model_validate(
        {"queue": {"agedShare": 0.25, "taskTimeoutSeconds": 7200}}
    )
    for name, value in environment_of(said).items():
        monkeypatch.setenv(name, value)
    limits = settings.load().pool_limits()
    assert (limits.aged_share, limits.task_queue_timeout_seconds) == (0.25, 7200)


@pytest.mark.parametrize(
    ("tenants", "said"),
    [
        ({}, None),
        ({"each": {}}, "*"),
        ({"each": {"waiting": 5, "seesAll": True}}, "*,waiting=5,sees=all"),
        (
            {
                "named": [
                    {"name": "team", "apiKeySecretRef": {"name": "team"}},
                    {"name": "ops", "apiKeySecretRef": {"name": "ops"}, "seesAll": True},
                ]
            },
            "team;ops,sees=all",
        ),
    ],
)
def test_who_sees_what_reaches_the_worker(tenants, said):
    pool = LLMTaskPoolSpec.model_validate(
        {"auth": {"apiKeySecretRef": {"name": "keys"}}, "tenants": tenants}
    )
    assert environment_of(pool).get("LLMTASKPOOL_TENANTS") == said
