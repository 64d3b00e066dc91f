"""The engine process: ``python -m llmtaskpool_worker.engines.child FD``.

One model, one thread that runs it, one thread that listens. It ends at once when its parent does.
After an exception in a step nothing in the process is trusted: the running requests are told, and
the process ends so that its parent starts a fresh one.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmtaskpool_worker.disclosure import where_raised
from llmtaskpool_worker.engines import load_errors
from llmtaskpool_worker.engines.frames import decode_spec, decode_to_engine, framed, receive
from llmtaskpool_worker.engines.loop import EngineLoop
from llmtaskpool_worker.engines.memory import own_bytes
from llmtaskpool_worker.engines.nice_steps import NiceSteps
from llmtaskpool_worker.engines.parent import end_with_parent
from llmtaskpool_worker.engines.protocol import (
    Beat,
    FromEngine,
    LoadFailed,
    Loading,
    Memory,
    ModelSpec,
    Ping,
    SetNiceness,
    Stop,
    ToEngine,
    Trim,
)

ONNX_NEVER = ("generate", "translate", "summarize", "transcribe")
EXIT_CAN_NOT_LOAD = 3
EXIT_STEP_FAILED = 4
EXIT_MESSAGE_UNREADABLE = 5
BEAT_SECONDS = 1.0
"""A step that takes longer says at its next layer that it moves."""
MEMORY_SECONDS = 1.0
log = logging.getLogger("llmtaskpool.engine")


def main() -> int:
    """Serve the socket whose descriptor is the only argument; the exit code."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    faulthandler.enable()  # where it was when a signal killed it, on standard error
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which drains
    end_with_parent()
    connection = socket.socket(fileno=int(sys.argv[1]))
    first = receive(connection)
    if first is None:
        return 0
    spec = decode_spec(first)
    try:
        with _signs_of_life(connection):
            loop = _load(spec, connection)
    except _CanNotLoad as error:
        _send(connection, LoadFailed(str(error), may_pass=error.may_pass))
        return EXIT_CAN_NOT_LOAD
    inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    _send(connection, loop.ready())
    return _serve(loop, inbox, connection)


class _CanNotLoad(Exception):
    """The message is for people. ``may_pass``: another try, later, may end well."""

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass


class Pulse:
    """Tells the parent, at most once each BEAT_SECONDS, that a step moves on.

    It beats on the thread that runs the model and nowhere else: a thread of its own would go on
    beating while the model hangs.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.last = 0.0

    def rest(self) -> None:
        """A step begins: it has until BEAT_SECONDS from now to end without a word."""
        self.last = time.monotonic()

    def __call__(self) -> None:
        """A layer begins."""
        now = time.monotonic()
        if now - self.last >= BEAT_SECONDS:
            self.last = now
            _send(self._connection, Beat())


class Scales:
    """Tells the parent what this process holds, at most once each MEMORY_SECONDS."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._last = 0.0

    def tell(self) -> None:
        """A step has ended."""
        now = time.monotonic()
        if now - self._last >= MEMORY_SECONDS and (held := own_bytes()) is not None:
            self._last = now
            _send(self._connection, Memory(held))

    def trimmed(self, before: int | None) -> None:
        """What could be given back was; ``before`` it was so much."""
        if before is not None and (held := own_bytes()) is not None:
            _send(self._connection, Memory(held, max(0, before - held)))


def _serve(loop: EngineLoop, inbox: queue.SimpleQueue[ToEngine], connection: socket.socket) -> int:
    """Take in what came, step, tell what happened."""
    pulse = Pulse(connection)
    scales = Scales(connection)
    torch = sys.modules.get("torch")  # not where onnxruntime does it all
    steps = NiceSteps(1 if torch is None else torch.get_num_threads())
    loop.beat_with(pulse)
    try:
        while True:
            while not loop.busy() or not inbox.empty():
                message = inbox.get()
                if isinstance(message, Stop):
                    return 0
                if isinstance(message, SetNiceness):
                    steps.level = message.n
                    continue
                if isinstance(message, Ping):
                    _send(connection, Beat())
                    continue
                before = own_bytes() if isinstance(message, Trim) else None
                _send(connection, *loop.accept(message))
                scales.trimmed(before)
            pulse.rest()
            _send(connection, *steps.run(loop.step))
            scales.tell()
    except (BrokenPipeError, ConnectionResetError):
        return 0
    except Exception as error:
        # What the error says may hold parts of a prompt: its type and place must do.
        log.error("a step failed: %s", where_raised(error))  # noqa: TRY400
        return EXIT_STEP_FAILED


def _listen(connection: socket.socket, inbox: queue.SimpleQueue[ToEngine]) -> None:
    """Bring messages in; without a parent there is nothing left to do."""
    try:
        while (body := receive(connection)) is not None:
            inbox.put(decode_to_engine(body))
    except OSError:
        pass  # the parent is gone
    except Exception as error:
        log.error("a message can't be read: %s", where_raised(error))  # noqa: TRY400
        os._exit(EXIT_MESSAGE_UNREADABLE)
    os._exit(0)  # even in the middle of a step


_SENDING = threading.Lock()
"""While it loads, two threads send."""


def _send(connection: socket.socket, *events: FromEngine) -> None:
    if events:
        with _SENDING:
            connection.sendall(b"".join(framed(event) for event in events))


@contextmanager
def _signs_of_life(connection: socket.socket) -> Iterator[None]:
    """Beat while the model loads: a load may take an hour, and a stopped process looks the same."""
    loaded = threading.Event()

    def beat() -> None:
        with suppress(OSError):  # the parent is gone
            while not loaded.wait(BEAT_SECONDS):
                _send(connection, Beat())

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield
    finally:
        loaded.set()
        beating.join()


def set_up_torch(options: Mapping[str, Any]) -> None:
    """What holds for all of torch in this process.

    ``options``: ``torch_threads``, or ``most_threads`` where there is no such choice.
    """
    import torch

    if "torch_threads" in options:
        torch.set_num_threads(int(options["torch_threads"]))
    elif (most := options.get("most_threads")) is not None:
        # The processors have other engines of this worker to serve, or a limit that torch, which
        # counts the machine's, doesn't see.
        torch.set_num_threads(max(1, min(int(most), torch.get_num_threads())))
    # cuDNN's attention plans anew for each length that it hasn't seen, and a decode step has a
    # length of its own: 45 ms of a step's 60, measured on an H100.
    torch.backends.cuda.enable_cudnn_sdp(False)


def sees_gpu() -> bool:
    """Whether torch has one here to run on."""
    import torch

    return torch.cuda.is_available()


def keep_to(processors: list[int]) -> None:
    """Run this process on these alone. Where that can't be, it runs where it may."""
    with suppress(OSError, AttributeError):  # they were taken away, or it isn't Linux
        os.sched_setaffinity(0, processors)


def _load(spec: ModelSpec, connection: socket.socket) -> EngineLoop:
    """The loop of a model. Raises _CanNotLoad."""
    from llmtaskpool_worker.engines.resolve import resolve
    from llmtaskpool_worker.engines.sources import SourceRefused
    from llmtaskpool_worker.engines.spared_imports import spare

    def progress(stage: str, fraction: float) -> None:
        _send(connection, Loading(stage, fraction))

    options = dict(spec.options)
    if mine := options.pop("processors", None):
        keep_to(mine)  # before there are other threads: they inherit it
    threads = int(options.pop("threads", 8))
    try:
        folder = resolve(spec.source, progress)
        progress("loading", 0.0)
        set_up_torch(options)
        spare(folder, sys.modules, gpu=sees_gpu())
        from llmtaskpool_worker.engines.weights import ModelRefused

        try:
            loop = load_loop(spec.task, folder, threads, options)
        except ModelRefused as error:
            raise _CanNotLoad(f"{spec.name}: {error}") from None
    except SourceRefused as error:
        raise _CanNotLoad(f"{spec.name}: {error}", may_pass=error.may_pass) from None
    except ImportError as error:
        extra = "onnx" if str(error.name).startswith("onnx") else "worker"
        raise _CanNotLoad(
            f"{spec.name}: {error.name} is not installed; install llmtaskpool[{extra}]"
        ) from None
    except (_CanNotLoad, BrokenPipeError):
        raise  # said already; nobody is there to be told
    except Exception as error:
        log.error("the model can't be loaded: %s", where_raised(error))  # noqa: TRY400 - as in _serve
        raise _CanNotLoad(
            f"{spec.name}: {load_errors.told(error)}", may_pass=load_errors.may_pass(error)
        ) from None
    progress("loaded", 1.0)
    return loop


def load_loop(task: str, folder: Path, threads: int, options: dict[str, Any]) -> EngineLoop:
    """The loop of a task. Raises ModelRefused, and whatever goes wrong with its files.

    Each imports what it needs: transformers alone takes seconds.
    """
    from llmtaskpool_worker.engines.onnx_files import onnx_file
    from llmtaskpool_worker.engines.weights import ModelRefused

    device, dtype = options.pop("device", None), options.pop("dtype", None)
    if task == "tensor":
        from llmtaskpool_worker.engines.one_pass.tables import load_table

        return load_table(folder, device=device, dtype=dtype, threads=threads, options=options)
    if task in ONNX_NEVER and onnx_file(folder) is not None:
        raise ModelRefused(
            f"it is an ONNX model, which runs once over its input, and task={task} writes token by "
            "token: name another task, or serve the model's safetensors"
        )
    if task == "generate":
        from llmtaskpool_worker.engines.generation import load_generation

        return load_generation(folder, device=device, dtype=dtype, threads=threads, options=options)
    if task in ("translate", "summarize", "transcribe"):
        from llmtaskpool_worker.engines.seq2seq.load import load_sequences

        return load_sequences(
            folder, task, device=device, dtype=dtype, threads=threads, options=options
        )
    from llmtaskpool_worker.engines.one_pass.load import load_one_pass

    return load_one_pass(folder, task, device=device, dtype=dtype, threads=threads, options=options)


if __name__ == "__main__":
    sys.exit(main())
