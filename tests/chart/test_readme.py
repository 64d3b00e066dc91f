"""The chart's README.md: its table of values, what it says is installed, what people type."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shlex
from types import ModuleType
from typing import Any

import pytest
from chart.charts import ALL_MONITORING, CHART, ROOT, Helm, Manifest
from fakes.read_yaml import document

PAGE = (CHART / "README.md").read_text()
VALUES_TEXT = (CHART / "values.yaml").read_text()
VALUES: dict[str, Any] = document(VALUES_TEXT)
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
EXAMPLES = [block for language, block in _FENCE.findall(PAGE) if language == "yaml"]
EVERYTHING = {"monitoring": ALL_MONITORING, "networkPolicy": {"enabled": True}}
KUBECTL = {"get", "delete", "create"}


def made(name: str) -> ModuleType:
    """A module of hack/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "hack" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


chart_values = made("chart_values")


def cells(text: str) -> list[list[str]]:
    """The lines of a table but for its head, with pipes as they are read."""
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    split = (re.split(r"(?<!\\)\|", line)[1:-1] for line in lines)
    return [[cell.strip().replace("\\|", "|") for cell in line] for line in split]


def section(title: str) -> str:
    return PAGE.split(f"\n{title}\n")[1].split("\n## ")[0]


def nested(path: str, value: object) -> dict[str, Any]:
    """{"a": {"b": value}} of a.b."""
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = dict(one)
    for key, value in other.items():
        inner = both.get(key)
        plain = not (isinstance(inner, dict) and isinstance(value, dict))
        both[key] = value if plain else merged(inner, value)
    return both


def commands() -> list[list[str]]:
    """What the page has people type, in its blocks and in its text."""
    blocks = [block.replace("\\\n", " ") for language, block in _FENCE.findall(PAGE) if language]
    lines = [line for block in blocks for line in block.splitlines()]
    lines += _CODE.findall(_FENCE.sub("", PAGE))
    return [shlex.split(one, comments=True) for one in lines if re.match(r"(helm|kubectl) \w", one)]


def test_the_table_is_what_values_and_schema_say() -> None:
    current = chart_values.with_table(PAGE, VALUES_TEXT, SCHEMA)
    assert current == PAGE, "run `make chart` and commit helm/llmtaskpool/README.md"


def test_every_value_is_in_the_table_once_with_its_default_a_type_and_a_meaning() -> None:
    together: dict[str, Any] = {}
    names = []
    for name, kind, default, meaning in cells(section("## Values")):
        assert len(re.sub(r"[^a-z]", "", meaning.lower())) > 10, name
        names.append(name.strip("*`"))
        if not name.startswith("**"):  # a group
            assert kind, name
            together = merged(together, nested(names[-1], json.loads(default.strip("`"))))
    assert len(names) == len(set(names)) > 40
    assert together == VALUES


def test_types_tell_what_the_schema_takes() -> None:
    rows = cells(chart_values.table(VALUES_TEXT, SCHEMA))
    told = {name.strip("*`"): kind for name, kind, _, _ in rows}
    assert told["replicas"] == "integer from 0 to 10"
    assert told["runAsUser"] == "integer from 1 to 2,147,483,647, or null"
    assert told["logLevel"] == "one of `debug`, `info`, `warning`, `error`"
    assert told["record"] == "list of strings matching `^(all|[-a-z0-9]+/[-a-z0-9]+)$`"
    assert told["networkPolicy.apiServerPorts"] == "list of integers from 1 to 65,535"
    assert told["commonLabels"] == "map of strings"
    assert told["podDisruptionBudget.maxUnavailable"] == (
        "integer of at least 0, or string matching `^[0-9]{1,3}%$`"
    )


def test_a_meaning_is_the_comment_right_above_or_else_the_schemas() -> None:
    text = """\
# -- Of another: a line is between.

# Not this.
# -- First | line
# and second.
told: a
untold: b
"""
    string = {"type": "string", "description": "From the schema."}
    rows = cells(chart_values.table(text, {"properties": {"told": string, "untold": string}}))
    assert [row[3] for row in rows] == ["First | line and second.", "From the schema."]


def test_a_default_that_is_too_long_for_a_table_is_left_to_values_yaml() -> None:
    text = f"# -- A long one.\nlong: {'x' * 99}\n"
    rows = cells(chart_values.table(text, {"properties": {"long": {"type": "string"}}}))
    assert rows == [["`long`", "string", "see values.yaml", "A long one."]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# -- Told.\na: {}\n# Told, but not for the table.\nb: 1\n", "b has no meaning"),
        ("# -- Told.\na:\n  inner: 1\n", "a.inner is not in values.schema.json"),
    ],
)
def test_a_value_without_a_meaning_or_a_schema_is_refused_by_name(text: str, told: str) -> None:
    inner = {"type": "object", "properties": {}}
    with pytest.raises(ValueError, match=told):
        chart_values.table(text, {"properties": {"a": inner, "b": {"type": "integer"}}})


@pytest.mark.parametrize(
    "page",
    [
        "",
        f"{chart_values.END}\n{chart_values.BEGIN}",
        f"{chart_values.BEGIN}\n{chart_values.END}\n{chart_values.END}",
    ],
)
def test_a_page_without_its_marks_is_refused_and_not_overwritten(page: str) -> None:
    with pytest.raises(ValueError, match="once and in this order"):
        chart_values.with_table(page, VALUES_TEXT, SCHEMA)


def test_every_kind_in_the_templates_is_named() -> None:
    files = [*CHART.glob("templates/**/*.yaml"), *CHART.glob("files/crds/*.yaml")]
    kinds = {kind for path in files for kind in re.findall(r"^kind: (\w+)", path.read_text(), re.M)}
    assert len(kinds) > 12
    for kind in kinds:
        assert re.search(rf"\b{kind}\b", section("## What it installs")), kind


def test_what_it_says_is_installed_is_installed_and_comes_and_goes_with_its_switch(
    helm: Helm,
) -> None:
    def installed(values: dict[str, Any]) -> set[tuple[str, str]]:
        objects: list[Manifest] = []
        for namespaces in ([], ["team-a"]):
            objects += helm.render(merged(EVERYTHING, values) | {"namespaces": namespaces})
        return {(one["kind"], one["metadata"]["name"]) for one in objects}

    there = installed({})
    kinds = {kind for kind, _ in there}
    said = set()
    for what, names, when in cells(section("## What it installs")):
        words = kinds & set(re.findall(r"\w+", what))
        row = {(kind, name) for kind in words for name in _CODE.findall(names)}
        said |= row
        switches = [path for path in _CODE.findall(when) if path != "namespaces"]
        assert row, what
        assert switches or when == "always", what
        for path in switches:
            named = {"serviceAccount": {"name": "mine"}}  # needed where none is made
            assert not row & installed(merged(named, nested(path, False))), path
    assert said == there


def test_every_example_of_values_is_taken(helm: Helm) -> None:
    assert len(EXAMPLES) >= 4
    for block in EXAMPLES:
        assert helm.render(document(block)), block


def test_everything_that_a_command_sets_is_taken(helm: Helm) -> None:
    seen = 0
    for words in commands():
        given = [
            f"{word}={value}"
            for word, value in itertools.pairwise(words)
            if word.startswith("--set")
        ]
        if given:
            done = helm.run("template", "llmtaskpool", str(CHART), *given)
            assert done.returncode == 0, f"{given}: {done.stderr}"
            seen += 1
    assert seen >= 2


def test_values_that_the_text_names_are_there() -> None:
    seen = set()
    for code in _CODE.findall(_FENCE.sub("", PAGE.split(chart_values.BEGIN)[0])):
        path = re.split(r"[:=]", code)[0].strip()
        found: Any = VALUES
        if path.split(".")[0] not in VALUES:
            continue
        for key in path.split("."):
            assert key in found, code
            found = found[key]
        seen.add(path)
    assert {"crds.keep", "crds.install", "rbac.create", "namespaces"} <= seen


def test_its_commands_are_there_with_their_options(helm: Helm) -> None:
    verbs = {"helm": set(), "kubectl": set()}
    for program, verb, *rest in commands():
        verbs[program].add(verb)
        if program == "kubectl":
            assert verb in KUBECTL, verb
            continue
        told = helm.run("help", verb)
        assert f"helm {verb}" in told.stdout, verb
        for word in rest:
            option = re.match(r"--[a-z-]+", word)
            assert not option or f"{option[0]} " in told.stdout, f"helm {verb} {word}"
            assert not word.startswith("helm/") or (ROOT / word / "Chart.yaml").is_file(), word
    assert {"install", "upgrade", "uninstall", "test"} <= verbs["helm"]
    assert verbs["kubectl"]


def test_helm_shows_the_page_so_it_is_in_the_package(helm: Helm) -> None:
    assert helm.run("show", "readme", str(CHART)).stdout.strip() == PAGE.strip()
