"""Pool files and options: what is good becomes a pool, what is bad one clear line per fault."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from llmtaskpool_operator.api.manifest_file import BadPool, pool_from_file
from llmtaskpool_operator.local.settings import pool_from_options, worker_command
from llmtaskpool_worker.engines.model_option import parse_model

ROOT = Path(__file__).parents[2]
HEAD = "apiVersion: llmtaskpool.io/v1alpha1\nkind: LLMTaskPool\nmetadata: {name: a}\n"


def faults(text: str, tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "pool.yaml"
    path.write_text(text)
    with pytest.raises(BadPool) as caught:
        pool_from_file(path)
    assert all("\n" not in fault for fault in caught.value.faults)
    return caught.value.faults


def test_the_example_is_a_pool_of_a_generating_and_an_embedding_model():
    pool = pool_from_file(ROOT / "examples" / "local.yaml")
    assert [model.task for model in pool.spec.models] == ["generate", "embed"]


def test_every_fault_has_a_line_that_names_field_value_and_remedy(tmp_path):
    found = faults(
        HEAD + "spec: {scaling: {minReplicas: -1, maxReplica: 3}, queue: {limit: many}}", tmp_path
    )
    assert len(found) == 3
    assert any("spec.scaling.minReplicas: -1: " in fault for fault in found)
    assert any("spec.scaling.maxReplica" in f and "correct its name" in f for f in found)
    assert any("spec.queue.limit: 'many'" in fault for fault in found)


def test_a_minimum_over_the_maximum_says_what_to_change(tmp_path):
    found = faults(HEAD + "spec: {scaling: {minReplicas: 5, maxReplicas: 2}}", tmp_path)
    assert "lower minReplicas or raise maxReplicas" in found[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "0 objects of kind LLMTaskPool"),
        ("kind: Pod", "0 objects of kind LLMTaskPool"),
        (HEAD + "spec: {}\n---\n" + HEAD + "spec: {}", "2 objects of kind LLMTaskPool"),
        ("a: [", "no YAML at line 1"),
        ("!!python/object/apply:os.system ['true']", "no YAML at line 1"),
        ("\x00", "no YAML"),
        (HEAD, "spec: Field required: add it"),
        ("[" * 5000, "no YAML"),
    ],
)
def test_a_file_that_holds_no_pool_is_one_line(text, said, tmp_path):
    found = faults(text, tmp_path)
    assert len(found) == 1
    assert said in found[0]


def test_a_file_that_is_not_there_is_one_line():
    with pytest.raises(BadPool, match="No such file or directory: name a file that exists"):
        pool_from_file(Path("/nowhere/pool.yaml"))


def test_models_of_the_command_line_replace_the_default_ones():
    pool = pool_from_options(["a=/models/a", "b=/models/b,task=embed,dtype=bfloat16"], 0, 3)
    a, b = pool.spec.models
    assert (a.name, a.source, a.task) == ("a", "/models/a", "generate")
    assert (b.task, b.options) == ("embed", {"dtype": "bfloat16"})
    assert (pool.spec.scaling.min_replicas, pool.spec.scaling.max_replicas) == (0, 3)


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2.5-7B-Instruct", "llama-3.1-8b", "my_model", "qwen2.5:7b"]
)
def test_a_models_name_may_be_the_one_that_clients_know(name):
    pool = pool_from_options([f"{name}=/models/a,alias=gpt-4o-mini,alias=b,dtype=float32"], 1, 2)
    (model,) = pool.spec.models
    assert (model.name, model.aliases) == (name, ["gpt-4o-mini", "b"])
    options = worker_command(pool.spec).options
    (given,) = [text for flag, text in pairwise(options) if flag == "--model"]
    told = parse_model(given)
    assert (told.name, told.aliases) == (name, ("gpt-4o-mini", "b"))
    assert told.options == {"dtype": "float32"}


@pytest.mark.parametrize("text", ["a", "=x", "a=", "a=b,c", "a=b,=c", "A B=c", "a=b,task=sing"])
def test_a_model_that_is_none_is_refused_with_an_example(text):
    with pytest.raises(BadPool):
        pool_from_options([text], 1, 2)


def test_a_queue_that_survives_is_the_file_of_the_pools_one_worker(tmp_path):
    spec = pool_from_options([], 1, 1).spec
    options = worker_command(spec, queue=tmp_path / "queue.db").options
    assert (("--queue", f"sqlite:{tmp_path}/queue.db")) in pairwise(options)
    assert "--queue" not in worker_command(spec).options


def test_the_cores_of_the_machine_are_divided_among_the_most_workers():
    spec = pool_from_options([], 1, 4).spec
    assert worker_command(spec, cores=8).environment["OMP_NUM_THREADS"] == "2"
    assert worker_command(spec, cores=2).environment["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in worker_command(spec).environment
