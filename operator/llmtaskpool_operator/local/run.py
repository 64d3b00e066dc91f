"""What ``llmtaskpool local`` does from its start to its end, signals and exit code included."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from dataclasses import replace
from math import ceil
from pathlib import Path

from llmtaskpool_worker.contract import keys_in
from rich.console import Console
from rich.text import Text

from llmtaskpool_operator.api.pool import LLMTaskPool
from llmtaskpool_operator.local import digits
from llmtaskpool_operator.local.demo import Demo
from llmtaskpool_operator.local.demo_report import DemoReport, report, summary
from llmtaskpool_operator.local.fleet import Unstartable
from llmtaskpool_operator.local.live_view import JsonView, Line, View, view_for
from llmtaskpool_operator.local.passed_over import told
from llmtaskpool_operator.local.pool import LocalOptions, LocalPool, NoRecord, PortTaken
from llmtaskpool_operator.local.upstream_server import GRACE_SECONDS, UpstreamServer

OK, FAULTS, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
FALL_SECONDS = 60.0
LEAVING_SECONDS = 5.0
POLL_SECONDS = 0.05
START_SECONDS = 600.0
"""The first start converts weights; on a slow disk that takes minutes."""


async def run(pool: LLMTaskPool, options: LocalOptions, *, output: str, demo: bool) -> int:
    """Run the pool until a signal, or until the demo is over; the exit code."""
    view = view_for("json" if output == "json" else "text", Console())
    try:
        if demo:
            with tempfile.TemporaryDirectory(prefix="llmtaskpool-demo-") as folder:
                used = options if options.data_dir else replace(options, data_dir=Path(folder))
                return await _run(pool, used, view, demo=True)
        return await _run(pool, options, view, demo=False)
    except (NoRecord, PortTaken, Unstartable) as error:
        view.close()
        sys.stderr.write(f"llmtaskpool local: {error}\n")
        return BAD_INPUT
    except TimeoutError:
        view.close()
        sys.stderr.write(f"llmtaskpool local: no worker was ready within {START_SECONDS:g} s\n")
        return FAULTS
    finally:
        view.close()


async def _run(pool: LLMTaskPool, options: LocalOptions, view: View, *, demo: bool) -> int:
    epoch = time.time() - time.monotonic()
    local = LocalPool(pool, options, view, lambda: epoch + time.monotonic())
    if fields := told(pool.spec, server=bool(options.upstream)):
        text = f"Of pods alone, and nothing on this machine: {', '.join(fields)}."
        view.tell(Line(local.elapsed(), "notice", text))
    stopping = asyncio.Event()
    killing = asyncio.Event()
    _on_signals(stopping, killing)
    upstream = _upstream(local, view)
    try:
        await local.start()
        if upstream is not None:
            upstream.start()
        if isinstance(view, JsonView):
            view.write({"event": "listening", "url": local.url})
        loop = asyncio.create_task(local.run())
        main = asyncio.create_task(_demo(local, view) if demo else _serve(local, view, stopping))
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait({loop, main, stop}, return_when=asyncio.FIRST_COMPLETED)
        found = await _result(loop, main)
    finally:
        known = descendants(os.getpid())
        await _end(local, stopping, killing, view)
        if upstream is not None:
            await upstream.stop(0.0 if killing.is_set() else GRACE_SECONDS)
    code = _told(found, view, await left_running(known))
    return INTERRUPTED if demo and found is None else code


def _upstream(local: LocalPool, view: View) -> UpstreamServer | None:
    def notice(text: str) -> None:
        view.tell(Line(local.elapsed(), "notice", text))

    command = local.options.upstream
    return UpstreamServer(command, notice, time.monotonic) if command else None


async def _result(
    loop: asyncio.Task[None], main: asyncio.Task[DemoReport | None]
) -> DemoReport | None:
    """What the demo found, if it came to its end; raises what ended the loop."""
    found = main.result() if main.done() and not main.cancelled() else None
    main.cancel()
    loop.cancel()
    ended = await asyncio.gather(loop, main, return_exceptions=True)
    for one in ended:
        if isinstance(one, Exception):
            raise one
    return found


async def _end(
    local: LocalPool, stopping: asyncio.Event, killing: asyncio.Event, view: View
) -> None:
    drain_seconds = local.options.drain_seconds
    if stopping.is_set():
        text = f"Stopping: running tasks have {drain_seconds:g} s; Ctrl-C again ends at once."
        view.tell(Line(local.elapsed(), "notice", text))
    stop = asyncio.create_task(local.stop(drain_seconds=drain_seconds))
    kill = asyncio.create_task(killing.wait())
    await asyncio.wait({stop, kill}, return_when=asyncio.FIRST_COMPLETED)
    if not stop.done():
        stop.cancel()
        await asyncio.gather(stop, return_exceptions=True)
        await local.kill()
    else:
        await stop
    kill.cancel()


def _told(found: DemoReport | None, view: View, left: set[int]) -> int:
    """Tell the demo's summary and whether anything is left running; the exit code."""
    if found is None:
        return FAULTS if left else OK
    if isinstance(view, JsonView):
        view.write(found.as_dict() | {"left_running": len(left)})
    else:
        view.close()
        view.say(summary(found))
        view.say(Text(f"Left running: {len(left)} processes.", style="bold red" if left else ""))
    return FAULTS if found.faults or left else OK


async def _serve(local: LocalPool, view: View, stopping: asyncio.Event) -> None:
    await local.first_ready.wait()
    view.say(how_to_call(local))
    await stopping.wait()


async def _demo(local: LocalPool, view: View) -> DemoReport:
    """The burst, then the fall; raises TimeoutError when no worker gets ready."""
    async with asyncio.timeout(START_SECONDS):
        await local.first_ready.wait()
    view.say(how_to_call(local))
    models = local.pool.spec.models
    demo = Demo(
        local.url,
        chat_model=next(m.name for m in models if m.task == "generate"),
        embed_model=next(m.name for m in models if m.task == "embed"),
        image_model=next((m.name for m in models if m.source == str(digits.MODEL)), None),
        clock=time.monotonic,
        key=_first_key(local.options.api_key_file),
    )
    view.below(demo.progress)
    began = time.monotonic()
    results = await demo.run()
    seconds = time.monotonic() - began
    view.below(Text("The burst is done: the pool falls back to its minimum.", style="dim"))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FALL_SECONDS):
            await local.at_rest.wait()
    view.below(None)
    return report(
        results,
        seconds=seconds,
        decisions=local.decisions,
        most_replicas=local.most_replicas,
        most_threads=local.most_threads,
    )


def _first_key(path: Path | None) -> str | None:
    return keys_in(path.read_text("utf-8-sig"))[0] if path is not None else None


def how_to_call(local: LocalPool) -> Text:
    """What to type to use the pool."""
    models = local.pool.spec.models
    model = next((m.name for m in models if m.task == "generate"), None)
    keyed = local.options.api_key_file is not None
    auth = " -H 'authorization: Bearer YOUR_KEY'" if keyed else ""
    text = Text("Ready. ", style="bold green")
    if model is None:
        text.append(f"curl{auth} {local.url}/v1/models", style="default")
        return text
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    key = "YOUR_KEY" if keyed else "none"
    text.append("Call it from another terminal:\n", style="default")
    text.append(
        f"  curl{auth} {local.url}/v1/chat/completions \\\n"
        f"    -H 'content-type: application/json' -d '{body}'\n"
        "or from Python:\n"
        f'  client = openai.OpenAI(base_url="{local.url}/v1", api_key="{key}")\n'
        f'  client.chat.completions.create(model="{model}", '
        'messages=[{"role": "user", "content": "Hello"}])',
        style="cyan not bold",
    )
    return text


def _on_signals(stopping: asyncio.Event, killing: asyncio.Event) -> None:
    def on_signal() -> None:
        (killing if stopping.is_set() else stopping).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)


async def left_running(known: set[int]) -> set[int]:
    """Those of ``known`` that still run; engines are given a moment to follow their worker."""
    for _ in range(ceil(LEAVING_SECONDS / POLL_SECONDS)):
        known = _running(known)
        if not known:
            break
        await asyncio.sleep(POLL_SECONDS)
    return known


def _running(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


def descendants(pid: int) -> set[int]:
    """All processes that ``pid`` started, directly or not, as Linux lists them."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                # The name, which may hold anything, is in brackets before the fields.
                fields = (entry / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
    found = {pid}
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return found - {pid}
