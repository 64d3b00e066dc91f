"""What an engine process is told, and what it isn't."""

from __future__ import annotations

from pathlib import Path

import pytest
from llmtaskpool_worker.engines.environment import engine_environment
from llmtaskpool_worker.engines.protocol import ModelSpec

HUB = ModelSpec("org/gated", "hf://org/gated@main")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "LLMTASKPOOL_HUB_TOKEN_FILE", "LLMTASKPOOL_HUB_TOKENS_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "name",
    ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "HF_ENDPOINT", "HF_HUB_OFFLINE"]
    + ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "LLMTASKPOOL_CACHE_BYTES"],
)
def test_the_way_to_the_hub_is_known_to_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "value")
    assert engine_environment(HUB)[name] == "value"


@pytest.mark.parametrize("name", ["LLMTASKPOOL_API_KEYS", "AWS_SECRET_ACCESS_KEY", "MY_proxy"])
def test_keys_of_others_are_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hush")
    assert "hush" not in engine_environment(HUB).values()


def test_a_models_own_token_goes_before_the_pools_and_that_before_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "of-the-machine")
    assert engine_environment(HUB)["HF_TOKEN"] == "of-the-machine"
    common = tmp_path / "pool"
    common.write_text("of-the-pool\n")
    monkeypatch.setenv("LLMTASKPOOL_HUB_TOKEN_FILE", str(common))
    assert engine_environment(HUB)["HF_TOKEN"] == "of-the-pool"
    own = tmp_path / "models"
    own.mkdir()
    monkeypatch.setenv("LLMTASKPOOL_HUB_TOKENS_DIR", str(own))
    (own / "org%2Fgated").write_text("of-the-model")
    assert engine_environment(HUB)["HF_TOKEN"] == "of-the-model"
    (own / "org%2Fgated").write_text("rotated")
    assert engine_environment(HUB)["HF_TOKEN"] == "rotated"
    assert engine_environment(ModelSpec("b", "hf://o/b"))["HF_TOKEN"] == "of-the-pool"


@pytest.mark.parametrize("content", ["", "\n", "two words", "a\nb"])
def test_a_file_that_is_no_token_is_none(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pool").write_text(content)
    monkeypatch.setenv("LLMTASKPOOL_HUB_TOKEN_FILE", str(tmp_path / "pool"))
    assert "HF_TOKEN" not in engine_environment(HUB)


def test_a_model_that_is_no_hubs_gets_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hush")
    told = engine_environment(ModelSpec("a", "/models/a"))
    assert "HF_TOKEN" not in told
    assert told["HF_HUB_OFFLINE"] == "1"
