from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from llmtaskpool_worker.kinds.content import OBJECT_BYTES
from llmtaskpool_worker.kinds.io import register_io_kinds
from llmtaskpool_worker.kinds.registry import ArgumentsError, CallContext, HandlerError, Kinds


def kinds_over(folder: Path | None) -> Kinds:
    kinds = Kinds()
    register_io_kinds(kinds, data_dir=folder, fetch_hosts=())
    return kinds


def call(kinds: Kinds, name: str, arguments: dict[str, Any]) -> Any:
    """Check and run, as the dispatcher does."""
    kind = kinds.by_name[name]
    assert kind.check is not None
    kind.check(arguments)
    return asyncio.run(kind.handler(arguments, CallContext("t", 0.0)))  # type: ignore[arg-type]  # async


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    kinds = kinds_over(tmp_path)
    assert call(kinds, "io.write", {"name": "a/b.txt", "content": "ж"})["bytes"] == 2
    assert call(kinds, "io.read", {"name": "a/b.txt"})["content"] == "ж"
    assert call(kinds, "io.read", {"name": "a/b.txt", "encoding": "base64"})["content"] == "0LY="


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", ".x", "a//b", "", "a\x00b"])
def test_a_name_that_could_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    for kind, more in (("io.read", {}), ("io.write", {"content": "x"})):
        with pytest.raises(ArgumentsError) as refused:
            call(kinds_over(tmp_path), kind, {"name": name, **more})
        assert refused.value.field == "arguments.name"


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    data, outside = tmp_path / "data", tmp_path / "outside"
    data.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (data / "file").symlink_to(outside / "secret")
    (data / "folder").symlink_to(outside)
    for name in ("file", "folder/secret"):
        with pytest.raises(HandlerError, match="no such object"):
            call(kinds_over(data), "io.read", {"name": name})
        with pytest.raises(HandlerError, match="no such object"):
            call(kinds_over(data), "io.write", {"name": name, "content": "changed"})
    assert (outside / "secret").read_text() == "secret"


def test_a_too_large_object_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(OBJECT_BYTES + 1)
    with pytest.raises(HandlerError) as refused:
        call(kinds_over(tmp_path), "io.read", {"name": "big"})
    assert refused.value.code == "too_large"


def test_without_a_data_folder_the_answer_names_the_setting() -> None:
    with pytest.raises(ArgumentsError, match="LLMTASKPOOL_DATA_DIR"):
        call(kinds_over(None), "io.read", {"name": "a"})


def test_a_failed_write_leaves_no_unfinished_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(HandlerError) as refused:
        call(kinds_over(tmp_path), "io.write", {"name": "taken", "content": "x"})
    assert refused.value.code == "not_written"
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(HandlerError, match="no such object"):
            call(kinds_over(tmp_path), "io.read", {"name": name})
