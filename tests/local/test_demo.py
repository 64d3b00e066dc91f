"""The demo's burst against the worker's own HTTP servers over a scripted pool."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import time

from fakes.fake_pool import FakePool, answer_prompt
from fakes.http_rig import serving
from llmtaskpool_operator.local.demo import Demo, Size
from llmtaskpool_operator.local.demo_report import quantile, report, summary
from llmtaskpool_operator.local.digits import picture
from llmtaskpool_worker.scheduling.task import Embed, Embedded, Evaluated, Returned
from msgspec.structs import replace
from rich.console import Console

SIZE = Size(
    batch=4, batch_tokens=8, keep=1, chats=2, chat_tokens=4, chat_seconds=0.05, embeddings=2,
    reranks=3, images=2,
)  # fmt: skip


def vector_of(tokens: tuple[int, ...]) -> bytes:
    """Near for texts with a sofa or a couch in them, far for others."""
    text = "".join(map(chr, tokens))
    soft = "sofa" in text or "couch" in text
    return struct.pack("<3f", *((1.0, 0.1, len(text) / 1e3) if soft else (0.1, 1.0, 0.0)))


class DemoPool(FakePool):
    """Files in memory; ``break_kind`` fails the tasks of one kind, ``slow_chats`` delays chats.

    ``blind``: each picture is read as a 0.
    """

    def __init__(self, clock, break_kind="", slow_chats=0.0, blind=False):
        super().__init__(clock, script=self.answer)
        self.break_kind = break_kind
        self.slow_chats = slow_chats
        self.blind = blind
        self.files = {}

    def submit(self, request):
        if request.kind in ("io.write", "io.read"):  # the fake knows one kind of call
            labels = {**request.labels, "kind": request.kind}
            request = replace(request, kind="sum", labels=labels)
        return super().submit(request)

    async def answer(self, run):
        kind = run.request.labels.get("kind", run.request.kind)
        arguments = getattr(run.request.payload, "arguments", None)
        batch = run.request.labels.get("class") == "batch"
        if kind == "chat" and not batch:
            await asyncio.sleep(self.slow_chats)
        run.start()
        if kind == self.break_kind:
            run.fail("broken", "It is broken.")
        elif kind == "io.write":
            self.files[arguments["name"]] = arguments["content"]
            run.succeed(Returned({"bytes": len(arguments["content"])}))
        elif kind == "io.read":
            run.succeed(Returned({"content": self.files[arguments["name"]]}))
        elif kind == "classify":
            shown = [PICTURES.index(one) for one in run.request.payload.images]
            labels = ["0" if self.blind else str(digit) for digit in shown]
            run.succeed(Evaluated({"data": [{"label": label} for label in labels]}, len(shown)))
        elif kind == "rerank":
            question = bytes(run.request.payload.rows[0].tokens[::4]).decode()
            best = 0 if "young cat" in question else 1
            run.succeed(Evaluated({"results": [{"index": best, "relevance_score": 0.9}]}, 9))
        elif isinstance(run.request.payload, Embed):
            tokens = run.request.payload.tokens
            run.succeed(Embedded(vector_of(tokens), len(tokens)))
        else:
            await answer_prompt(run)


PICTURES = [picture(digit) for digit in range(10)]


def run_demo(*, image_model="photos", **pool):
    with serving(lambda clock: DemoPool(clock, **pool)) as rig:

        async def go():
            demo = Demo(
                rig.url,
                chat_model="echo",
                embed_model="vectors",
                image_model=image_model,
                clock=time.monotonic,
                size=SIZE,
            )
            return await demo.run()

        results = asyncio.run(go())
        weights = {request.kind: request.weight for request in rig.pool.requests}
    found = report(
        results, seconds=1.0, decisions=["1 -> 2"], most_replicas=2, most_threads=8
    )  # fmt: skip
    return found, weights


def test_every_task_is_done_and_every_answer_looked_at():
    found, weights = run_demo()
    assert {one.name: one.done for one in found.classes} == {
        "chat": 2,
        "rerank": 3,
        "embed": 2,
        "image": 2,
        "io": 8,
        "batch": 4,
    }
    assert found.errors == ()
    assert found.answer is not None
    assert found.similarities is not None
    assert found.found is not None
    assert found.seen in {"0 1 2 3", "1 2 3 4"}  # the one that ended last
    assert weights["embed"] == 5.0
    assert weights["rerank"] == 10.0
    assert weights["classify"] == 2.0


def test_pictures_that_are_read_wrongly_are_faults():
    found, _ = run_demo(blind=True)
    assert [one.failed for one in found.classes if one.name == "image"] == [2]
    assert any("were read as 0 0 0 0" in fault for fault in found.faults)


def test_a_pool_without_the_demo_s_pictures_has_no_such_class():
    found, _ = run_demo(image_model=None)
    assert "image" not in [one.name for one in found.classes]
    assert found.errors == ()


def test_one_task_that_fails_is_a_fault_and_the_others_are_done():
    found, _ = run_demo(break_kind="io.read")
    assert [one.failed for one in found.classes if one.name == "io"] == [4]
    assert len(found.errors) == 4
    assert "broken" in found.faults[0]
    assert sum(one.done for one in found.classes) == 17


def test_chats_that_wait_as_long_as_batch_work_are_a_fault():
    found, _ = run_demo(slow_chats=0.3)
    assert any("chats waited as long as batch work" in fault for fault in found.faults)


def test_the_summary_reads_well_and_its_json_has_the_same_numbers():
    found, _ = run_demo(break_kind="io.read")
    text = io.StringIO()
    Console(file=text, width=200).print(summary(found))
    shown = text.getvalue()
    for part in (
        "wait p95",
        "batch",
        "similarity",
        "rerank",
        "digits read",
        "1 -> 2",
        "4 failures",
        "FAULT: io: ",
    ):
        assert part in shown
    value = json.loads(json.dumps(found.as_dict()))
    assert value["event"] == "summary"
    assert {one["name"]: one["failed"] for one in value["classes"]}["io"] == 4
    assert value["faults"] == found.faults


def test_quantiles_are_values_that_were_seen():
    values = [float(n) for n in range(1, 21)]
    assert quantile(values, 0.5) == 10.0
    assert quantile(values, 0.95) == 19.0
    assert quantile([7.0], 0.95) == 7.0
    assert quantile([], 0.5) == 0.0
