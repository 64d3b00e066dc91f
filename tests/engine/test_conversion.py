from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from llmtaskpool_worker.engines import conversion
from llmtaskpool_worker.engines.sources import SourceRefused

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
