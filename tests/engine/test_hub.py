"""Models of a hub: they come once for all who share a cache, whatever the hub does meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.stub_hub import COMMIT, StubHub, stub_hub
from llmtaskpool_worker.engines.process import EngineProcess
from llmtaskpool_worker.engines.protocol import EngineEvent, LoadFailed, ModelSpec, Ready

SIZE = 2_000_000
SOURCE = "hf://org/tiny@main"
REPLICA = """
import sys, time
from llmtaskpool_worker.engines.resolve import resolve
from llmtaskpool_worker.engines.sources import SourceRefused
said = set()
def progress(stage, fraction):
    if stage not in said:
        said.add(stage)
        print("stage", stage, flush=True)
while True:
    try:
        print("folder", resolve(sys.argv[1], progress), flush=True)
        break
    except SourceRefused as error:
        print("passing" if error.may_pass else "refused", error, flush=True)
        if not error.may_pass or len(sys.argv) > 2:
            break
        time.sleep(0.1)
"""
"""A worker's way to its model, without torch; the pause between tries is EngineProcess's."""


def weights(size: int) -> bytes:
    """A safetensors file of one tensor."""
    head = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + bytes(size)


FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": weights(SIZE),
    "README.md": b"not asked for",
}


@pytest.fixture
def hub() -> Iterator[StubHub]:
    with stub_hub(dict(FILES)) as made:
        yield made


class Replicas:
    """Processes that share a cache."""

    def __init__(self, hub: StubHub, cache: Path) -> None:
        self.hub = hub
        self.cache = cache
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *more: str, source: str = SOURCE, **variables: str) -> subprocess.Popen[str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "LLMTASKPOOL_")) and "proxy" not in name.lower()
        }
        environment |= {
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "LLMTASKPOOL_CACHE_DIR": str(self.cache),
        }
        made = subprocess.Popen(
            [sys.executable, "-c", REPLICA, source, *more],
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.running.append(made)
        return made

    def ended(self, replica: subprocess.Popen[str]) -> str:
        out, _ = replica.communicate(timeout=120)
        return out

    def one(self, *more: str, source: str = SOURCE, **variables: str) -> str:
        return self.ended(self.start(*more, source=source, **variables))


@pytest.fixture
def replicas(hub: StubHub, tmp_path: Path) -> Iterator[Replicas]:
    made = Replicas(hub, tmp_path / "cache")
    yield made
    hub.slow.set()
    for one in made.running:
        one.kill()
        one.communicate()


def test_three_replicas_a_rollout_and_a_scale_up_are_one_download(
    hub: StubHub, replicas: Replicas
) -> None:
    """Counted at a hub that fails, throttles, cuts a connection, and asks for a token."""
    hub.token = "hf_secret"
    hub.info_faults += [503, 429, 503]
    hub.file_faults += ["cut"]
    said = [replicas.start(HF_TOKEN="hf_secret") for _ in range(3)]  # the first replicas
    outcomes = [replicas.ended(one) for one in said]
    outcomes += [replicas.one(HF_TOKEN="hf_secret") for _ in range(3)]  # a rollout
    outcomes += [replicas.one(HF_TOKEN="hf_secret")]  # a scale-up
    for outcome in outcomes:
        assert outcome.splitlines()[-1].startswith("folder "), outcome
    assert len({outcome.splitlines()[-1] for outcome in outcomes}) == 1
    name = "model.safetensors"
    assert hub.whole[name] == 1
    assert hub.begun[name] == 2, "the one that was cut, and the one that went on"
    assert hub.sent[name] <= 1.5 * len(FILES[name])
    assert hub.begun["README.md"] == 0


def test_who_waits_for_anothers_download_says_so(hub: StubHub, replicas: Replicas) -> None:
    hub.slow.clear()
    first = replicas.start()
    assert first.stdout is not None
    assert first.stdout.readline() == "stage downloading\n"
    second = replicas.start()
    assert second.stdout is not None
    assert "waiting for another worker's download" in second.stdout.readline()
    hub.slow.set()
    for one in (first, second):
        assert replicas.ended(one).splitlines()[-1].startswith("folder ")
    assert hub.begun["model.safetensors"] == 1


def test_a_download_that_was_killed_is_never_used_and_leaves_nothing_behind(
    hub: StubHub, replicas: Replicas
) -> None:
    hub.slow.clear()
    first = replicas.start()
    assert first.stdout is not None
    first.stdout.readline()
    deadline = time.monotonic() + 30
    while not list(replicas.cache.rglob("*.incomplete")) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    assert list(replicas.cache.rglob("*.incomplete"))
    hub.down = True
    assert "folder" not in replicas.one("once"), "half of a model was taken for a whole one"
    hub.down = False
    hub.slow.set()
    assert replicas.one().splitlines()[-1].startswith("folder ")
    assert not list(replicas.cache.rglob("*.incomplete"))


def test_a_commit_that_is_there_needs_no_hub(hub: StubHub, replicas: Replicas) -> None:
    pinned = f"hf://org/tiny@{COMMIT}"
    assert "folder " in replicas.one(source=pinned)
    asked = len(hub.requests)
    hub.down = True
    assert "folder " in replicas.one(source=pinned)
    assert len(hub.requests) == asked


def test_a_branch_that_is_there_is_used_while_the_hub_is_away(
    hub: StubHub, replicas: Replicas
) -> None:
    assert "folder " in replicas.one()
    hub.down = True
    assert "folder " in replicas.one()
    assert "folder " in replicas.one(HF_HUB_OFFLINE="1")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_told_as_such(hub: StubHub, replicas: Replicas, status: int) -> None:
    hub.info_faults += [status] * 50
    said = replicas.one("once")
    assert f"passing source 'hf://org/tiny@main': the hub answered {status}" in said
    assert "tried again" in said


def test_a_hub_that_is_not_there_may_come(hub: StubHub, replicas: Replicas) -> None:
    said = replicas.one("once", HF_ENDPOINT="http://127.0.0.1:9")
    assert "passing" in said
    assert "check the network, proxies and HF_ENDPOINT" in said


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "check its name, and give a token that may read it"),
        (403, "accept its terms on the hub"),
        (404, "there is no revision main"),
        (400, "check HF_ENDPOINT and the model's name"),
    ],
)
def test_what_another_try_cant_mend_is_named_at_once(
    hub: StubHub, replicas: Replicas, status: int, remedy: str
) -> None:
    hub.info_faults += [status] * 9
    said = replicas.one()
    assert f"refused source 'hf://org/tiny@main': the hub answered {status}" in said
    assert remedy in said


def test_a_model_that_there_is_not_is_named_at_once(replicas: Replicas) -> None:
    said = replicas.one(source="hf://org/none@main")
    assert "refused source 'hf://org/none@main': the hub answered 404: there is no such" in said


def test_a_gated_model_asks_for_a_token_and_comes_with_one(
    hub: StubHub, replicas: Replicas
) -> None:
    hub.token, hub.gated = "hf_secret", True
    assert "accept its terms on the hub" in replicas.one()
    assert "accept its terms on the hub" in replicas.one(HF_TOKEN="hf_wrong")
    assert "folder " in replicas.one(HF_TOKEN="hf_secret")


def test_offline_without_the_model_says_what_to_do(replicas: Replicas) -> None:
    assert "bring it there, or unset HF_HUB_OFFLINE" in replicas.one(HF_HUB_OFFLINE="1")


def test_a_cache_without_room_is_told_before_anything_is_downloaded(
    hub: StubHub, replicas: Replicas
) -> None:
    said = replicas.one("once", LLMTASKPOOL_CACHE_BYTES="1000000")
    assert re.search(r"passing .* needs 1\.9 MiB and the model cache has 1\.0 MiB free", said)
    assert "give it more room (spec.cache)" in said
    assert not hub.begun
    room = SIZE + 100 * 1024 * 1024
    assert "folder " in replicas.one("once", LLMTASKPOOL_CACHE_BYTES=str(room))


def test_an_engine_is_ready_once_the_hub_answers_and_says_why_it_waits(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny("llama")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    (tokens / "org%2Ftiny").write_text("hf_secret\n")
    with stub_hub(files) as hub:
        hub.token = "hf_secret"
        hub.info_faults += [503]
        for name, value in {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "LLMTASKPOOL_CACHE_DIR": str(tmp_path / "cache"),
            "LLMTASKPOOL_HUB_TOKENS_DIR": str(tokens),
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)

        async def story() -> list[EngineEvent]:
            spec = ModelSpec("org/tiny", SOURCE, options={"torch_threads": 1})
            engine = EngineProcess(spec, jitter=lambda: 0.0)
            await engine.start()
            seen: list[EngineEvent] = []
            try:
                async for event in engine.events():
                    seen.append(event)
                    if isinstance(event, Ready):
                        break
            finally:
                await engine.stop(5.0)
            return seen

        seen = asyncio.run(asyncio.wait_for(story(), 200))
    (failed,) = [event for event in seen if isinstance(event, LoadFailed)]
    assert "the hub answered 503" in failed.message
    assert failed.retrying_in_seconds is not None
