"""Batches from the command line: what is printed and written, and with which code it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.http_rig import Rig, serving_engines, wait_until
from fakes.letters_engine import LettersEngine
from llmtaskpool import Client
from llmtaskpool_operator.__main__ import app
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def engine() -> LettersEngine:
    return LettersEngine("echo")


@pytest.fixture(scope="module")
def rig(engine: LettersEngine) -> Iterator[Rig]:
    with serving_engines(engine) as running:
        yield running


def cli(rig: Rig, *arguments: str):
    return CliRunner().invoke(app, ["batch", *arguments, "--url", rig.url])


def lines(told) -> list[dict]:
    return [json.loads(line) for line in told.stdout.splitlines()]


def asked(name: str, **more) -> str:
    body = {"model": "echo", "prompt": "abc"} | more
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body})


def written(path: Path) -> list[str]:
    return sorted(json.loads(line)["custom_id"] for line in path.read_text().splitlines())


def test_a_file_is_run_and_its_results_and_errors_are_written_beside_it(rig, tmp_path):
    file = tmp_path / "pages.jsonl"
    file.write_text("\n".join([asked("a"), asked("b"), asked("bad", n=0), "nonsense"]))
    told = cli(rig, "run", str(file))
    assert told.exit_code == 1, "not every line was answered"
    assert "completed: 2 of 4 answered, 2 failed" in told.stdout
    assert "line 4: it is no JSON object" in told.stdout
    assert written(tmp_path / "pages.jsonl.results.jsonl") == ["a", "b"]
    errors = tmp_path / "pages.jsonl.errors.jsonl"
    assert sorted(json.loads(line)["line"] for line in errors.read_text().splitlines()) == [3, 4]
    assert not list(tmp_path.glob("*.part"))


def test_all_good_is_0_and_json_tells_the_files(rig, tmp_path):
    file, results = tmp_path / "in", tmp_path / "out"
    file.write_text(asked("a"))
    options = ("--results", str(results), "--label", "team=search", "--output", "json")
    told = cli(rig, "run", str(file), *options)
    assert told.exit_code == 0, told.output
    [batch] = lines(told)
    assert (batch["status"], batch["metadata"]) == ("completed", {"team": "search"})
    assert batch["files"] == {"results": str(results)}
    assert written(results) == ["a"]


def test_after_ctrl_c_the_batch_goes_on_and_is_resumed_by_its_id(
    rig, engine, tmp_path, monkeypatch
):
    file = tmp_path / "in"
    file.write_text(asked("a"))
    engine.hangs = True
    try:
        with monkeypatch.context() as patched:

            def interrupted(*_: object, **__: object) -> None:
                raise KeyboardInterrupt

            patched.setattr(Client, "wait_batch", interrupted)
            told = cli(rig, "run", str(file))
        assert told.exit_code == 130
        resume = told.stderr.splitlines()[-1].removeprefix("it goes on: llmtaskpool batch run ")
        late = cli(rig, "run", *resume.split(), "--timeout", "0.1", "--output", "json")
        assert late.exit_code == 124
        assert lines(late)[0]["files"] == {}
    finally:
        engine.hangs = False
    told = cli(rig, "run", str(file), *resume.split())
    assert told.exit_code == 0, told.output
    assert written(tmp_path / "in.results.jsonl") == ["a"]
    assert len(lines(cli(rig, "list", "--output", "json"))) < 9, "nothing was begun anew"


def test_batches_are_listed_looked_at_and_cancelled(rig, engine, tmp_path):
    file = tmp_path / "in"
    file.write_text(asked("a"))
    engine.hangs = True
    try:
        assert cli(rig, "run", str(file), "--timeout", "0").exit_code == 124
        [newest] = lines(cli(rig, "list", "--limit", "1", "--output", "json"))
        assert newest["id"] in cli(rig, "list").stdout
        cancelled = cli(rig, "cancel", newest["id"], "--output", "json")
        assert lines(cancelled)[0]["status"] in ("cancelling", "cancelled")
        wait_until(
            lambda: (
                lines(cli(rig, "get", newest["id"], "--output", "json"))[0]["status"] == "cancelled"
            ),
            "it is cancelled",
        )
    finally:
        engine.hangs = False
    assert cli(rig, "get", "batch_none").exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run"], "name a FILE, or a batch that was begun with --resume ID"),
        (["run", "/nowhere/x"], "/nowhere/x: No such file or directory: name a file"),
        (["run", "FILE"], "its first line has no url: write one, or give --endpoint"),
        (["run", "FILE", "--endpoint", "/v1/x"], "endpoint is '/v1/x': use /v1/chat/completions"),
        (["run", "--resume", "batch_none"], "There is no batch 'batch_none' here"),
        (["run", "FILE", "--window", "9y", "--endpoint", "/v1/tag"], "from 1h to 14d"),
        (["list", "--output", "xml"], "--output 'xml': use text or json"),
    ],
)
def test_what_is_asked_wrongly_is_one_line_with_the_remedy(rig, tmp_path, arguments, told):
    file = tmp_path / "in"
    file.write_text("{}")
    answer = cli(rig, *[str(file) if one == "FILE" else one for one in arguments])
    assert answer.exit_code in (2, 3), answer.output
    assert told in answer.stderr
    assert answer.stderr.startswith(f"llmtaskpool batch {arguments[0]}: ")
    assert answer.stderr.count("\n") == 1
