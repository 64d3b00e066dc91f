"""What the pages say is there: fields, links, files, commands with their options, conditions."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from llmtaskpool_operator.__main__ import app
from llmtaskpool_operator.api.crdgen import UNSEEN
from llmtaskpool_operator.api.reference import as_markdown
from llmtaskpool_operator.api.scaling import ScalingMode
from llmtaskpool_operator.api.status import ConditionType
from llmtaskpool_operator.autoscaler import model_trouble, status
from llmtaskpool_operator.autoscaler.law import Bound
from llmtaskpool_operator.cluster import backend, pod_problems, refusals, start_warnings
from llmtaskpool_worker.__main__ import app as worker_app

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("**/*.md")),
    ROOT / "helm" / "llmtaskpool" / "README.md",
]
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_OURS = r"(?:tests|hack|benchmarks|examples|deploy|helm|docs|crds|operator|worker)"
_FILE = re.compile(rf"(?<![\w./-]){_OURS}/[\w./-]*\w\.(?:py|md|ya?ml|json|lua|csv|png|svg)\b")
_COMMANDS = {
    "llmtaskpool": typer.main.get_command(app),
    "llmtaskpool-worker": typer.main.get_command(worker_app),
}


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def linked(page: Path) -> list[str]:
    """Targets of the links in a page; what looks like one within code is none."""
    return _LINK.findall(re.sub(r"`[^`\n]*`(?!\])", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles)
    return {title.replace(" ", "-") for title in plain}


def test_the_reference_is_what_the_model_says() -> None:
    assert (ROOT / "docs" / "reference.md").read_text() == as_markdown(), "run `make crd`"


def test_every_field_in_the_reference_has_a_type_and_a_meaning() -> None:
    rows = re.findall(r"^\| `\w+` \|.*$", as_markdown(), re.MULTILINE)
    assert len(rows) > 80
    for row in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 5, row
        assert cells[1], row
        assert len(cells[4]) > 10, row


def test_the_reference_tells_bounds_defaults_and_rules_of_a_field() -> None:
    page = as_markdown()
    (row,) = re.findall(r"^\| `targetUtilization` \| number \| `0.9` .*$", page, re.MULTILINE)
    assert "0.05 to 2" in row
    assert "`self.minReplicas <= self.maxReplicas`" in page
    assert "lower minReplicas or raise maxReplicas" in page


@EACH_PAGE
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for target in linked(page):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(found), f"{target}: no such heading"


@EACH_PAGE
def test_files_that_a_page_names_are_there(page: Path) -> None:
    for name in _FILE.findall(page.read_text().replace("`tests/e2e/kind.yaml` when present", "")):
        assert (ROOT / name).exists(), name


def typed(page: Path) -> Iterator[list[str]]:
    """The commands of ours in a page's fenced blocks, as words; what follows a pipe is left out."""
    for _, block in _FENCE.findall(page.read_text()):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            text = re.sub(r"^\s*(?:\$ |sudo )?(?:uv run (?:--no-sync )?)?", "", line)
            text = text.removeprefix(".venv/bin/")
            if text.split(" ")[0] in _COMMANDS:
                yield shlex.split(re.split(r"[|>&;](?![^\[]*\])|\s#", text)[0], comments=True)


def of_group(words: list[str]) -> tuple[Any, str, list[str]]:
    """The command that the words name, its name, and what is given to it."""
    group = _COMMANDS[words[0]]
    assert len(words) > 1, f"{words}: of which command?"
    command = group.get_command(typer.Context(group), words[1])
    assert command is not None, f"{words[0]} has no command {words[1]}"
    return command, words[1], words[2:]


def options_of(command: Any) -> set[str]:
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {
        "--help"
    }


@EACH_PAGE
def test_commands_of_ours_have_the_options_that_a_page_gives_them(page: Path) -> None:
    for words in typed(page):
        command, name, given = of_group(words)
        if name == "calibrate":  # hands its options on to the worker
            continue
        if any("[" in word for word in given):  # a synopsis: its values are placeholders
            asked = set(re.findall(r"--[a-z-]+", " ".join(given)))
            assert asked <= options_of(command), words
        else:
            command.make_context(name, list(given))


def test_the_readme_and_the_pages_show_commands_of_ours() -> None:
    seen = {words[1] for page in PAGES for words in typed(page) if len(words) > 1}
    assert {"local", "decide", "simulate", "explain", "top", "calibrate", "serve"} <= seen


@EACH_PAGE
def test_make_targets_and_options_in_text_are_there(page: Path) -> None:
    known = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    asked = re.findall(r"`(?:sudo )?make ([a-z0-9-]+)", text)
    asked += re.findall(r"^(?:sudo )?make ([a-z0-9-]+)", text, re.MULTILINE)
    assert set(asked) <= known


def test_the_tree_in_the_readme_is_the_tree_with_every_room() -> None:
    packages = {"operator": "operator/llmtaskpool_operator", "worker": "worker/llmtaskpool_worker"}
    package, seen = "", set()
    table = (ROOT / "README.md").read_text().split("## The tree")[1]
    for cell in re.findall(r"^\| (`[^|]*`[^|]*) \|", table, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", cell):
            package = packages.get(name.split("/")[0], package)
            places = (name, f"{package}/{name.removeprefix('…/')}")
            found = [place for pattern in places for place in ROOT.glob(pattern)]
            assert found, name
            seen |= set(found)
    rooms = {folder.parent for root in packages.values() for folder in ROOT.glob(f"{root}/*/*.py")}
    assert rooms <= seen, sorted(rooms - seen)
    assert len(rooms) > 14


def test_manifests_in_pages_are_what_kubernetes_takes() -> None:
    seen = []
    for page in PAGES:
        for language, block in _FENCE.findall(page.read_text()):
            if language == "yaml" and "apiVersion: apps/" in block:
                body = yaml.safe_load(block)
                kubernetes_validate.validate(body, "1.37", strict=True)
                seen.append(body["metadata"]["name"])
    assert seen == ["vllm"]


def reasons() -> set[str]:
    """Every reason that a condition can have, read from the code that makes conditions."""
    found = {bound.value for bound in Bound} | {mode.value for mode in ScalingMode}
    for module in (status, model_trouble, pod_problems, start_warnings, refusals, backend):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            given = {word.arg: word.value for word in node.keywords}
            place = {"condition": 2, "Problem": 0}.get(node.func.id)
            if place is None or (module is pod_problems and place):  # a reader, not a maker
                continue
            value = node.args[place] if len(node.args) > place else given["reason"]
            kept = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
            found |= {
                one.value
                for part in kept
                for one in ast.walk(part)
                if isinstance(one, ast.Constant) and isinstance(one.value, str)
            }
    found.add(UNSEEN["reason"])
    return found | set(pod_problems._FATAL_WAITS) | set(pod_problems._SLOW_WAITS)


def test_operations_says_what_to_do_at_each_alert() -> None:
    rules = yaml.safe_load((ROOT / "helm" / "llmtaskpool" / "files" / "alerts.yaml").read_text())
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page.split("## Alerts: what to do")[1].split("\n## ")[0]
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    assert set(re.findall(r"`(LLMTaskPool\w+)`", table)) == alerts


def test_operations_has_a_line_for_each_condition_and_each_reason() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page.split("## Conditions")[1].split("\n## ")[0]
    words = set(re.findall(r"`([A-Za-z]+)(?:=\w+)?`", table))
    assert {kind.value for kind in ConditionType} <= words
    assert reasons() <= words, sorted(reasons() - words)
    assert len(reasons()) > 25


def rooms() -> dict[str, list[Path]]:
    """The rooms of both packages by name."""
    found: dict[str, list[Path]] = {}
    for root in ("operator/llmtaskpool_operator", "worker/llmtaskpool_worker"):
        for folder in {file.parent for file in (ROOT / root).glob("*/*.py")}:
            found.setdefault(folder.name, []).append(folder)
    return found


@EACH_PAGE
def test_files_that_a_page_names_by_their_room_are_in_it(page: Path) -> None:
    for folder, file in re.findall(r"`(\w+)/(\w+\.py)`", page.read_text()):
        places = [ROOT / folder, *rooms().get(folder, [])]
        assert any((place / file).exists() for place in places), f"{folder}/{file}"


def test_the_architecture_leads_into_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`(\w+)/\w+\.py`", page))
    assert set(rooms()) - named <= {"commands", "calibration"}
