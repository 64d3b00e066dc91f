"""Nothing of a pool's file is passed over in silence on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llmtaskpool_operator.api.manifest_file import parse_pool, pool_from_file
from llmtaskpool_operator.api.pool import LLMTaskPoolSpec
from llmtaskpool_operator.local.passed_over import TOLD, USED, Instead, faults, told
from llmtaskpool_operator.local.settings import worker_command

ROOT = Path(__file__).parents[2]
REDIS = {"redis": {"secretRef": {"name": "queue", "key": "url"}, "allowVolatile": True}}


def spec(**given: Any) -> LLMTaskPoolSpec:
    head = {"apiVersion": "llmtaskpool.io/v1alpha1", "kind": "LLMTaskPool"}
    return parse_pool({**head, "metadata": {"name": "a"}, "spec": given}).spec


def test_each_field_of_a_pool_is_used_or_refused_or_told() -> None:
    assert set(LLMTaskPoolSpec.model_fields) == USED | TOLD
    assert not USED & TOLD


@pytest.mark.parametrize(
    ("given", "named", "remedy"),
    [
        ({"queue": REDIS}, "spec.queue.redis.secretRef: queue/url: ", "--queue-url-file FILE"),
        (
            {"auth": {"apiKeySecretRef": {"name": "keys"}}},
            "spec.auth.apiKeySecretRef: keys/key: ",
            "--api-key-file FILE",
        ),
        (
            {"tenants": {"named": [{"name": "team", "apiKeySecretRef": {"name": "team"}}]}},
            "spec.tenants.named: team: ",
            "--tenant-keys-dir DIR",
        ),
        (
            {"trustedCaRef": {"name": "ca"}},
            "spec.trustedCaRef: ca/ca.crt: ",
            "--trusted-ca-file FILE",
        ),
        (
            {
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                ]
            },
            "spec.env.1.valueFrom: B: ",
            "set the variable before llmtaskpool",
        ),
        (
            {"envFrom": [{"secretRef": {"name": "s"}}]},
            "spec.envFrom: 1 objects: ",
            "take the field out",
        ),
        (
            {"models": [{"name": "m", "source": "image:registry/of:mine"}]},
            "spec.models.0.source: 'image:registry/of:mine': ",
            "name a folder",
        ),
        ({"scaling": {"mode": "External"}}, "spec.scaling.mode: External: ", "use Auto"),
    ],
)
def test_what_would_make_another_pool_is_refused_by_field_value_and_remedy(
    given: dict[str, Any], named: str, remedy: str
) -> None:
    [fault] = faults(spec(**given), Instead())
    assert fault.startswith(named)
    assert remedy in fault


def test_what_the_command_line_has_instead_is_no_fault() -> None:
    given = spec(
        queue=REDIS, auth={"apiKeySecretRef": {"name": "keys"}}, trustedCaRef={"name": "ca"}
    )
    assert len(faults(given, Instead())) == 3
    assert faults(given, Instead(keys=True, queue=True, ca=True)) == []


def test_fields_of_pods_alone_are_told_by_their_names() -> None:
    given = spec(
        image="here",
        resources={"limits": {"cpu": "1"}},
        tolerations=[],
        models=[
            {"name": "m", "source": "/m", "tokenSecretRef": {"name": "s"}},
            {"name": "served", "source": "openai:http://127.0.0.1:8002/v1"},
        ],
        upstream={"image": "vllm"},
    )
    pods = ["spec.image", "spec.models.0.tokenSecretRef", "spec.resources"]
    assert told(given, server=True) == pods
    assert told(given, server=False) == [*pods, "spec.upstream"]
    example = pool_from_file(ROOT / "examples" / "local.yaml").spec
    assert told(example, server=False) == []


def test_workers_get_the_servers_url_by_its_file_and_the_pools_variables(tmp_path: Path) -> None:
    given = spec(queue=REDIS, env=[{"name": "HTTPS_PROXY", "value": "http://proxy:1"}])
    made = worker_command(given, queue_url_file=tmp_path / "url", queue_pool="team/chat")
    wanted = {
        "LLMTASKPOOL_QUEUE_FILE": str(tmp_path / "url"),
        "LLMTASKPOOL_QUEUE_POOL": "team/chat",
        "LLMTASKPOOL_QUEUE_ALLOW_VOLATILE": "true",
        "HTTPS_PROXY": "http://proxy:1",
    }
    assert made.environment | wanted == made.environment
    assert "LLMTASKPOOL_QUEUE_FILE" not in worker_command(given).environment
