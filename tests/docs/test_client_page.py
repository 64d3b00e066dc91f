"""The examples of docs/client.md, run as they stand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.http_rig import Rig, serving_engines
from fakes.letters_engine import LettersEngine

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
TOLD = (
    r"u:Why is the sky blue\?\n\n((\d+%|(draft|check) succeeded)\n)+100%\n[0-9a-z-]+ succeeded\n",
    r"\[3, 3\]\n",
    r"(?s).*completed BatchCounts\(total=3, completed=3, failed=0\)\n",
)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with serving_engines(LettersEngine("smollm2"), LettersEngine("minilm", task="embed")) as made:
        yield made


@pytest.mark.parametrize(
    ("code", "told"), [*zip(EXAMPLES, TOLD, strict=True)], ids=range(len(TOLD))
)
def test_an_example_does_what_it_says(
    code: str,
    told: str,
    rig: Rig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LLMTASKPOOL_URL", rig.url)
    monkeypatch.chdir(tmp_path)
    ours = compile(code.replace("http://127.0.0.1:8080", rig.url), str(PAGE), "exec")
    exec(ours, {})  # noqa: S102  it is our own page
    assert re.fullmatch(told, capsys.readouterr().out)
    for file in tmp_path.glob("*.jsonl"):
        assert len([json.loads(line) for line in file.read_text().splitlines()]) == 3
