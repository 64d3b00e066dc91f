"""What a pool's spec says to its workers."""

from __future__ import annotations

import pytest
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.workers.options import environment_of, options_of
from llmtaskpool_worker.assembly import settings
from llmtaskpool_worker.engines.model_option import parse_model
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


def models(*given, **more):
    named = [{"name": "m", "source": "pypi:m"} | one for one in given]
    return LLMTaskPoolSpec.model_validate({"models": named} | more)


def told(said):
    given = options_of(said)
    return parse_model(given[given.index("--model") + 1]).options


def test_limits_of_a_model_reach_the_worker_as_its_options():
    limits = {"threads": 8, "waiting": 500, "cores": 2, "memory": "1.5Gi", "cache": "512Mi"}
    limits |= {"contextLength": 4096, "maxTokens": 256}
    assert told(models({"limits": limits, "options": {"dtype": "float32"}})) == {
        "dtype": "float32",
        "max_threads": 8,
        "max_waiting": 500,
        "torch_threads": 2,
        "memory_bytes": 3 << 29,
        "cache_bytes": 1 << 29,
        "context_length": 4096,
        "max_tokens": 256,
    }


def test_options_go_on_to_say_what_limits_do_not_and_both_may_say_the_same():
    both = {"limits": {"threads": 8, "memory": "1Gi"}}
    both["options"] = {"max_threads": "8", "memory_bytes": "1073741824", "cache_bytes": "9"}
    assert told(models(both)) == {"max_threads": 8, "memory_bytes": 1 << 30, "cache_bytes": 9}


@pytest.mark.parametrize(
    ("limits", "more", "words"),
    [
        ({"threads": 8}, {"options": {"max_threads": "9"}}, "keep limits.threads and take max_thr"),
        ({"memory": "1Gi"}, {"options": {"memory_bytes": "1000000000"}}, "different things"),
        ({"waiting": 8}, {"options": {"max_waiting": "many"}}, "different things"),
        ({"memory": "2"}, {}, "less than 1Mi: write an amount with its unit"),
        ({"cache": "1Gi"}, {"task": "embed"}, "limits.cache is of models that write"),
        ({"maxTokens": 9}, {"task": "transcribe"}, "limits.maxTokens is of models that write"),
        ({"contextLength": 9}, {"task": "tensor"}, "limits.contextLength is of models that read"),
        ({"cores": 2}, {"source": "openai:http://127.0.0.1:8002/v1"}, "say them there"),
        ({"threads": 0}, {}, "greater than or equal to 1"),
    ],
)
def test_limits_that_can_not_be_kept_are_refused_with_the_remedy(limits, more, words):
    with pytest.raises(ValidationError, match=words):
        models({"limits": limits} | more)


def test_the_memory_of_the_models_together_is_within_the_pods():
    two = [{"name": name, "limits": {"memory": "1100Mi"}} for name in ("a", "b")]
    models(*two, resources={"limits": {"memory": "2200Mi"}})
    models(*two)
    with pytest.raises(ValidationError, match=r"together over resources\.limits\.memory: lower"):
        models(*two, resources={"limits": {"memory": "2Gi"}})


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
