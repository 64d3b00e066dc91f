"""Settings: read from LLMTASKPOOL_* and the command line, refused with one clear line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from llmtaskpool_worker.assembly import settings
from llmtaskpool_worker.assembly.settings import Settings, SettingsError
from llmtaskpool_worker.engines.model_option import parse_model
from llmtaskpool_worker.scheduling.priority import QueuePolicy


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("LLMTASKPOOL_PORT", "0")
    monkeypatch.setenv("LLMTASKPOOL_API_KEYS", "one, two\nthree")
    monkeypatch.setenv("LLMTASKPOOL_MODELS", "a=/x,dtype=float32,slots=4;b=hf://o/n@r,task=embed")
    monkeypatch.setenv("LLMTASKPOOL_QUEUE_POLICY", "newest-first")
    monkeypatch.setenv("LLMTASKPOOL_QUEUE_LIMIT", "7")
    read = settings.load()
    assert [key.get_secret_value() for key in read.api_keys] == ["one", "two", "three"]
    first, second = read.model_specs()
    assert (first.name, first.source, first.task) == ("a", "/x", "generate")
    assert first.options == {"dtype": "float32", "slots": 4}
    assert (second.source, second.task) == ("hf://o/n@r", "embed")
    limits = read.pool_limits()
    assert limits.policy is QueuePolicy.NEWEST_FIRST
    assert limits.compute.queue_tasks == limits.io.queue_tasks == 7


def test_the_command_line_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("LLMTASKPOOL_THREADS", "3")
    assert settings.load().threads == 3
    assert settings.load(threads=5).threads == 5


def test_calibration_profiles_are_read_and_a_bad_one_is_named(monkeypatch, tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(
        """{"model": "m", "device": "cpu", "dtype": "float32", "threads": 2,
        "created_at": "2026-01-02T00:00:00Z",
        "step_seconds": {"1": 0.1}, "prefill_seconds": {"16": 0.2}}"""
    )
    bad.write_text("{}")
    monkeypatch.setenv("LLMTASKPOOL_PROFILES", str(good))
    assert [profile.model for profile in settings.load().calibration()] == ["m"]
    monkeypatch.setenv("LLMTASKPOOL_PROFILES", f"{good},{bad}")
    with pytest.raises(SettingsError, match=r"LLMTASKPOOL_PROFILES.*bad\.json: model"):
        settings.load()


def test_every_setting_says_what_it_is():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_keys_are_in_no_text_of_the_settings():
    read = settings.load(api_keys=("hush",), control_tokens=("hush",))
    assert "hush" not in repr(read) + read.model_dump_json()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"port": 70_000}, "PORT"),
        ({"threads": 0}, "THREADS"),
        ({"grace_seconds": "soon"}, "GRACE_SECONDS"),
        ({"grace_seconds": float("inf")}, "GRACE_SECONDS"),
        ({"queue_policy": "fifo"}, "QUEUE_POLICY"),
        ({"models": ("nothing",)}, "MODELS"),
        ({"api_keys": "key # of Ann"}, "API_KEYS"),
        ({"api_keys": "one two"}, "API_KEYS"),
        ({"api_keys": "# none,"}, "API_KEYS"),
        ({"control_tokens": " , "}, "CONTROL_TOKENS"),
        ({"models": ("a=x", "a=y")}, "MODELS"),
        ({"models": ("a=x,alias=b", "b=y")}, "MODELS"),
        ({"models": ("a=x,alias=c", "b=y,alias=c")}, "MODELS"),
        ({"models": ("a=x,alias=b c",)}, "MODELS"),
        ({"models": ("-a=x",)}, "MODELS"),
        ({"models": ("a=x,task=dance",)}, "MODELS"),
        ({"models": ("a=x,fast",)}, "MODELS"),
    ],
)
def test_a_bad_setting_is_named_by_its_variable(given, name):
    with pytest.raises(SettingsError, match=f"LLMTASKPOOL_{name} "):
        settings.load(**given)


def test_a_source_may_hold_an_equals_sign():
    assert parse_model("a=hf://org/x=y").source == "hf://org/x=y"


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("--threads", "0"), {}, "--threads"),
        ((), {"LLMTASKPOOL_MAX_BODY_BYTES": "many"}, "LLMTASKPOOL_MAX_BODY_BYTES"),
        (("--model", "nonsense"), {}, "name=source"),
        (("--port", "x"), {}, "--port"),
        ((), {"LLMTASKPOOL_API_KEYS_FILE": "/nowhere/keys"}, "LLMTASKPOOL_API_KEYS_FILE"),
        ((), {"LLMTASKPOOL_API_KEYS_FILE": "/dev/null"}, "holds no key"),
        ((), {"LLMTASKPOOL_CONTROL_TOKENS": "word of comment"}, "LLMTASKPOOL_CONTROL_TOKENS"),
        (("--port", "0", "--host", "192.0.2.1"), {}, "192.0.2.1"),
    ],
)
def test_bad_input_on_the_command_line_ends_with_code_2_and_one_clear_line(
    arguments, environment, said
):
    done = subprocess.run(
        [sys.executable, "-m", "llmtaskpool_worker", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment | {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_engine_is_told_to_stand_still_before_it_is_killed_for_it():
    with pytest.raises(SettingsError) as refused:
        settings.load(stall_seconds=40.0)
    assert "stall_seconds is 40 and stall_kill_seconds 30" in str(refused.value)
    assert "lower the first or raise the second" in str(refused.value)


@pytest.mark.parametrize("option", ["max_threads=0", "max_waiting=1.5", "memory_bytes=2Gi"])
def test_an_option_that_is_to_be_a_whole_number_is_refused_where_it_is_given(option: str) -> None:
    name, _, value = option.partition("=")
    with pytest.raises(ValueError, match=rf"option {name} is .*{value}.*: use a whole number from"):
        parse_model(f"m=pypi:m,{option}")
    assert parse_model(f"m=pypi:m,{name}=2e9").options == {name: 2_000_000_000}
