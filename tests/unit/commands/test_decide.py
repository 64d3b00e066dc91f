"""`llmtaskpool decide`, `crd` and `version` as people type them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from fakes import preloaded

ROOT = Path(__file__).parents[3]
ARTICLE = ["decide", "--threads", "3", "--t-max", "1", "--target", "0.5", "--alpha", "0.1"]
ARTICLE += ["--loads", "0.2,0.3,0.4,0.3,0.2", "--weights", "0.5,0.3,0.1,0.1,0.1"]


def llmtaskpool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return preloaded.llmtaskpool(*arguments, environment=os.environ)


def test_the_articles_example_gives_its_numbers_put_right() -> None:
    answer = llmtaskpool(*ARTICLE, "--output", "json")
    assert answer.returncode == 0, answer.stderr
    got = json.loads(answer.stdout)
    expected = {
        "utilization": 0.4667,
        "next_threads_exact": 2.9967,
        "next_threads": 3,
        "priorities": [2.5, 1.0, 0.25, 0.3333, 0.5],
        "order": [1, 2, 5, 4, 3],
    }
    assert {name: got[name] for name in expected} == expected


def test_t_max_as_the_article_defines_it_asks_for_four_threads() -> None:
    arguments = [*ARTICLE, "--output", "json"]
    arguments[arguments.index("--t-max") + 1] = "max"
    got = json.loads(llmtaskpool(*arguments).stdout)
    assert (got["utilization"], got["next_threads_exact"], got["next_threads"]) == (
        1.1667,
        3.0667,
        4,
    )


def test_people_get_a_table_and_the_sum() -> None:
    answer = llmtaskpool(*ARTICLE)
    assert answer.returncode == 0
    assert "3 -> 3 threads: utilization 0.4667 under target 0.5" in " ".join(answer.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--threads 0 --loads 1", "--threads 0 is below 1"),
        ("--threads x --loads 1", "--threads"),
        ("--threads 2 --loads 1,nan", "'nan' is not a number above 0"),
        ("--threads 2 --loads 1,-1", "'-1' is not a number above 0"),
        ("--threads 2 --loads 1,2 --weights 1", "give one weight per load"),
        ("--threads 2 --loads 1 --target 0", "--target 0.0 is not above 0"),
        ("--threads 2 --loads 1 --alpha fast", "--alpha: 'fast'"),
        ("--threads 2 --loads 1 --t-max 0", "--t-max: '0'"),
        ("--threads 2 --loads 1 --output xml", "use text or json"),
        ("--threads 2", "--loads"),
        ("--threads 2 --loads 1 --bogus", "--bogus"),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_2(arguments: str, said: str) -> None:
    answer = llmtaskpool("decide", *arguments.split())
    assert answer.returncode == 2
    assert said in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert answer.stdout == ""


def test_an_unknown_command_is_named() -> None:
    answer = llmtaskpool("scale")
    assert answer.returncode == 2
    assert "scale" in answer.stderr


def test_the_committed_crd_is_the_generated_one() -> None:
    assert (ROOT / "crds" / "llmtaskpool.yaml").read_text() == llmtaskpool("crd").stdout, (
        "run `make crd`"
    )


def test_version_names_what_is_installed() -> None:
    found = json.loads(llmtaskpool("version", "--output", "json").stdout)
    assert found["llmtaskpool"]
    assert found["pydantic"]
