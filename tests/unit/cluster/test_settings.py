"""`llmtaskpool operate` and its variables: what can't be used ends with one line and code 2."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import typer
from llmtaskpool_operator.cluster import operator
from llmtaskpool_operator.cluster.api_client import NoCluster
from llmtaskpool_operator.cluster.settings import (
    PREFIX,
    OperatorSettings,
    OperatorSettingsError,
    load,
)
from llmtaskpool_operator.commands import operate
from typer.testing import CliRunner

app = typer.Typer()
app.command()(operate.operate)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OperatorSettings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[OperatorSettings]:
    """Settings with which an operator was started, instead of one that starts."""
    found: list[OperatorSettings] = []

    class Started:
        def __init__(self, settings: OperatorSettings, clocks: Any) -> None:
            found.append(settings)

        async def run(self) -> None:
            pass

    monkeypatch.setattr(operator, "Operator", Started)
    return found


def invoke(*arguments: str, **variables: str) -> Any:
    environment = {PREFIX + name: value for name, value in variables.items()}
    return CliRunner().invoke(app, [*arguments], env=environment)


def test_without_any_setting_it_serves_all_namespaces(started) -> None:
    assert invoke().exit_code == 0
    (settings,) = started
    assert settings.namespaces == ()
    assert settings.identity == socket.gethostname()
    assert settings.namespace == "llmtaskpool-system"


@pytest.mark.parametrize("text", ["team-a,team-b", " team-a , team-b ", "team-a team-b,"])
def test_namespaces_are_separated_by_commas_or_spaces(text: str, started) -> None:
    assert invoke(NAMESPACES=text).exit_code == 0
    assert invoke("--namespaces", text).exit_code == 0
    assert [one.namespaces for one in started] == [("team-a", "team-b")] * 2


@pytest.mark.parametrize("text", ["", " ", ","])
def test_no_namespaces_mean_all(text: str, started) -> None:
    assert invoke(NAMESPACES=text).exit_code == 0
    assert started[0].namespaces == ()


def test_an_option_goes_before_its_variable(started) -> None:
    answer = invoke(
        *("--port", "9000", "--namespaces", "b", "--worker-image", "mine:2"),
        PORT="8000",
        NAMESPACES="a",
        WORKER_IMAGE="theirs:1",
    )
    assert answer.exit_code == 0, answer.stderr
    (settings,) = started
    assert (settings.port, settings.namespaces, settings.worker_image) == (9000, ("b",), "mine:2")


def test_every_variable_is_read(started) -> None:
    variables = {
        "NAMESPACE": "ours",
        "IDENTITY": "pod-1",
        "HOST": "127.0.0.1",
        "PORT": "0",
        "RESYNC_SECONDS": "5.5",
        "CONCURRENCY": "3",
        "CONTROL_PORT": "18001",
        "WORKER_IMAGE": "mine:1",
        "NAMESPACES": "a",
        "RECORD": "all",
        "WORKERS": '{"podLabels": {"team": "ml"}}',
        "LEASE": "prod-operator",
        "MAX_CONCURRENT_ROLLOUTS": "7",
    }
    assert set(variables) == {name.upper() for name in OperatorSettings.model_fields}
    assert invoke(**variables).exit_code == 0
    lists = ("namespaces", "record", "workers")
    assert {name.upper(): str(value) for name, value in started[0] if name not in lists} == {
        name: value for name, value in variables.items() if name.lower() not in lists
    }
    assert (started[0].namespaces, started[0].record) == (("a",), ("all",))
    assert started[0].workers.pod_labels == {"team": "ml"}


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("PORT", "70000", "less than or equal to 65535"),
        ("PORT", "-1", "greater than or equal to 0"),
        ("PORT", "http", "valid integer"),
        ("PORT", "", "valid integer"),
        ("CONCURRENCY", "0", "greater than or equal to 1"),
        ("CONCURRENCY", "1.5", "valid integer"),
        ("RESYNC_SECONDS", "0", "greater than or equal to 1"),
        ("RESYNC_SECONDS", "nan", "less than or equal to 3600"),
        ("RESYNC_SECONDS", "inf", "less than or equal to 3600"),
        ("RESYNC_SECONDS", "1m", "valid number"),
        ("CONTROL_PORT", "0", "greater than or equal to 1"),
        ("NAMESPACE", "Team_A", "should match pattern"),
        ("NAMESPACE", "a" * 64, "at most 63"),
        ("NAMESPACES", "team-a,Team_B", "should match pattern"),
        ("NAMESPACES", "*", "should match pattern"),
        ("NAMESPACES", "../kube-system", "should match pattern"),
        ("IDENTITY", "", "at least 1"),
        ("WORKER_IMAGE", "", "at least 1"),
        ("WORKER_IMAGE", "x" * 513, "at most 512"),
    ],
)
def test_a_bad_variable_is_one_line_with_name_value_and_remedy(name, value, remedy, started):
    answer = invoke(**{name: value})
    assert answer.exit_code == 2
    (line,) = answer.stderr.strip().splitlines()
    assert line.startswith(f"llmtaskpool operate: {PREFIX}{name}: ")
    assert value.split(",")[-1][:60] in line
    assert remedy in line
    assert OperatorSettings.model_fields[name.lower()].description in line
    assert answer.stdout == ""
    assert started == []


@pytest.mark.parametrize("name", ["NAMESPACE", "IDENTITY", "HOST"])
def test_a_value_with_a_line_break_stays_one_line(name: str, started) -> None:
    answer = invoke(**{name: "a\nb", "PORT": "x"})
    assert answer.exit_code == 2
    assert len(answer.stderr.strip().splitlines()) == 1


def test_a_log_level_that_is_none_is_told(started) -> None:
    answer = invoke("--log-level", "loud")
    assert answer.exit_code == 2
    said = "llmtaskpool operate: --log-level 'loud': use debug, info, warning or error"
    assert answer.stderr.strip() == said
    assert started == []


def test_other_peoples_variables_are_no_fault(started) -> None:
    """Kubernetes sets such for every Service that is named like the operator."""
    assert invoke(SERVICE_HOST="10.0.0.1", PORT_8080_TCP="tcp://10.0.0.1:8080").exit_code == 0


def test_what_is_given_by_a_program_is_checked_too() -> None:
    assert load(port=9).port == 9
    with pytest.raises(OperatorSettingsError, match=f"{PREFIX}PORT: 99999: "):
        load(port=99_999)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(98, "Address already in use"), "port 9000: Address already in use: use another"),
        (NoCluster("no cluster: x: set KUBECONFIG"), "set KUBECONFIG"),
    ],
)
def test_an_operator_that_can_not_start_says_why_in_one_line(error, said, monkeypatch) -> None:
    class Failing:
        def __init__(self, settings: OperatorSettings, clocks: Any) -> None:
            pass

        async def run(self) -> None:
            raise error

    monkeypatch.setattr(operator, "Operator", Failing)
    answer = invoke("--port", "9000")
    assert answer.exit_code == 2
    (line,) = answer.stderr.strip().splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("value", "place", "remedy"),
    [
        ('{"podLabels": {"a b": "c"}}', "WORKERS.podLabels: ", "a key is no label"),
        ('{"imagePullPolicy": "Sometimes"}', "WORKERS.imagePullPolicy: ", "'IfNotPresent'"),
        ('{"hostNetwork": true}', "WORKERS.hostNetwork: ", "not permitted"),
        ('{"user": {"id": 0}}', "WORKERS.user.id: ", "greater than or equal to 1"),
    ],
)
def test_bad_defaults_of_workers_are_told_by_their_field(value, place, remedy, started) -> None:
    answer = invoke(WORKERS=value)
    assert answer.exit_code == 2
    (line,) = answer.stderr.strip().splitlines()
    assert line.startswith(f"llmtaskpool operate: {PREFIX}{place}")
    assert remedy in line


def test_defaults_of_workers_that_are_no_json_are_told(started) -> None:
    answer = invoke(WORKERS="{podLabels")
    assert answer.exit_code == 2
    assert "WORKERS" in answer.stderr
    assert "Traceback" not in answer.stderr
