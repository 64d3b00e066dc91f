"""Archives of images for a node: whole, or without what it has."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from pack import layout, tools
from pack.build import Image

NAME = "localhost/llmtaskpool-worker:dev"
BIG, SMALL = b"torch" * 300_000, b"wheel"


def put(content: bytes) -> str:
    name = hashlib.sha256(content).hexdigest()
    (layout.folder() / "blobs" / "sha256" / name).write_bytes(content)
    return f"sha256:{name}"


@pytest.fixture
def digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A layout with one image of two layers."""
    monkeypatch.setenv("LLMTASKPOOL_IMAGES_CACHE", str(tmp_path))
    (layout.folder() / "blobs" / "sha256").mkdir(parents=True)
    found = {"big": put(BIG), "small": put(SMALL), "config": put(b"{}")}
    layers = [{"digest": found["big"]}, {"digest": found["small"]}]
    manifest = {"config": {"digest": found["config"]}, "layers": layers}
    found["manifest"] = put(json.dumps(manifest).encode())
    reference = {"org.opencontainers.image.ref.name": NAME}
    entry = {"digest": found["manifest"], "annotations": reference}
    (layout.folder() / "index.json").write_text(json.dumps({"manifests": [entry]}))
    return found


def archived(without: frozenset[str] = frozenset()) -> dict[str, bytes]:
    out = io.BytesIO()
    layout.write_archive(NAME, out, without=without)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}


def blob(digest: str) -> str:
    return digest.replace("sha256:", "blobs/sha256/")


def test_an_archive_has_the_image_under_the_name_that_a_node_looks_for(
    digests: dict[str, str],
) -> None:
    found = archived()
    assert set(found) == {"oci-layout", "index.json", *map(blob, digests.values())}
    assert found[blob(digests["big"])] == BIG
    (entry,) = json.loads(found["index.json"])["manifests"]
    assert entry["digest"] == digests["manifest"]
    assert entry["annotations"]["io.containerd.image.name"] == NAME


def test_a_layer_that_the_node_has_stays_behind_and_the_small_ones_go(
    digests: dict[str, str],
) -> None:
    everything = frozenset(digests.values())
    found = archived(without=everything)
    assert blob(digests["big"]) not in found
    assert {blob(digests[name]) for name in ("small", "config", "manifest")} <= set(found)


def test_a_pipe_gives_the_same_as_a_file(digests: dict[str, str]) -> None:
    whole = io.BytesIO()
    layout.write_archive(NAME, whole)
    with layout.piped(NAME, frozenset()) as source:
        assert source.read() == whole.getvalue()


def test_a_reader_that_leaves_early_stops_the_writer(digests: dict[str, str]) -> None:
    with layout.piped(NAME, frozenset()) as source:
        source.read(10)  # then the pipe is closed, with a megabyte still to come


def test_what_no_image_uses_any_more_is_deleted_but_not_while_somebody_reads(
    digests: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "run", lambda *_, **__: "")  # skopeo, which has nothing new to copy
    old = layout.folder() / "blobs" / "sha256" / put(b"of an older image").removeprefix("sha256:")
    with layout.reading():
        layout.keep(Image(NAME, "key", "id"))
        assert old.exists()
    layout.keep(Image(NAME, "key", "id"))
    assert not old.exists()
    assert archived()[blob(digests["big"])] == BIG


def test_size_and_digest_are_the_images(digests: dict[str, str]) -> None:
    assert layout.digest_of(NAME) == digests["manifest"]
    assert layout.size(NAME) > len(BIG) + len(SMALL)


def test_of_an_image_that_another_has_replaced_only_shared_layers_stay(
    digests: dict[str, str],
) -> None:
    own = put(b"of the old one alone")
    layers = [{"digest": digests["big"]}, {"digest": own}]
    manifest = {"config": {"digest": put(b'{"old": 1}')}, "layers": layers}
    index = json.loads((layout.folder() / "index.json").read_text())
    index["manifests"].insert(0, {"digest": put(json.dumps(manifest).encode())})  # has no name now
    (layout.folder() / "index.json").write_text(json.dumps(index))
    layout.tidy()
    left = {f"sha256:{one.name}" for one in (layout.folder() / "blobs" / "sha256").iterdir()}
    assert left == set(digests.values())
    assert set(archived()) == {"oci-layout", "index.json", *map(blob, digests.values())}
