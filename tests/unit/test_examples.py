"""The manifests in examples/: what a newcomer copies has to be right."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from llmtaskpool_operator.api.manifest_file import pool_from_file
from llmtaskpool_operator.api.names import KIND
from llmtaskpool_operator.api.scaling import ScalingMode
from llmtaskpool_operator.local.settings import worker_command
from llmtaskpool_worker.engines.model_option import parse_model

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
DOCUMENTED_OPTIONS = {
    "device", "dtype", "torch_threads", "max_threads", "cache_bytes", "prefill_chunk",
    "context_length", "memory_bytes", "max_waiting", "max_tokens",
}  # fmt: skip


def test_there_is_an_example_of_every_scaling_mode() -> None:
    assert {pool_from_file(path).spec.scaling.mode for path in EXAMPLES} == set(ScalingMode)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_holds_one_valid_pool_of_which_every_set_field_is_kept(path: Path) -> None:
    documents = [one for one in yaml.safe_load_all(path.read_text()) if one is not None]
    (written,) = [one for one in documents if one["kind"] == KIND]
    pool = pool_from_file(path)
    kept = pool.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert kept == written
    assert pool.spec.models


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_models_of_an_example_have_options_that_the_engine_knows(path: Path) -> None:
    options = worker_command(pool_from_file(path).spec).options
    given = [text for flag, text in pairwise(options) if flag == "--model"]
    models = [parse_model(text) for text in given]
    assert {key for model in models for key in model.options} <= DOCUMENTED_OPTIONS


_OWN = ("llmtaskpool.io", "keda.sh", "gateway.networking.k8s.io", "kueue.x-k8s.io")
"""Groups that Kubernetes itself has no schemas of."""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_an_example_has_beside_its_pool_fits_kubernetes_schemas(path: Path) -> None:
    for one in yaml.safe_load_all(path.read_text()):
        if one is not None and not one["apiVersion"].startswith(_OWN):
            kubernetes_validate.validate(one, "1.37", strict=True)


def test_the_ways_from_outside_lead_to_the_examples_service_and_its_port() -> None:
    path = next(path for path in EXAMPLES if path.stem == "exposed")
    found = {one["kind"]: one for one in yaml.safe_load_all(path.read_text()) if one is not None}
    pool = pool_from_file(path)
    name, (port,) = pool.metadata.name, pool.spec.service.ports
    (rule,) = found["Ingress"]["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert (backend["name"], backend["port"]) == (name, {"name": port.name})
    (route,) = found["HTTPRoute"]["spec"]["rules"]
    assert route["backendRefs"] == [{"name": name, "port": port.port}]
