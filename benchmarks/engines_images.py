"""Pictures beside torchvision in a loop and LitServe: the third table of `benchmarks/engines.md`.

One MobileNetV2 with the weights of a package, the same pictures for all three, in turn. They come
as clients send them: each of CLIENTS asks for one to four pictures at once, of all sizes, waits for
the answer and a moment, and asks again. The loop has no clients to wait for: it is given all of
them one after the other, in a process of its own, with as many threads.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from engines_litserve import mobilenet, transform
from PIL import Image
from processes import free_port, started

CLIENTS = 16
PAUSE_SECONDS = 0.02
"""The mean of a client's pauses; their lengths are drawn (exponential)."""
SIDES = (240, 900)
HERE = Path(__file__).parent


@dataclass(slots=True)
class Told:
    """What one side came to in each round: pictures a second of the clock, and of CPU time."""

    rates: list[float] = field(default_factory=list)
    per_cpu: list[float] = field(default_factory=list)
    apart: float = 0.0

    def note(self, count: int, seconds: float, cpu: float) -> None:
        """Take in a round."""
        self.rates.append(count / seconds)
        self.per_cpu.append(count / cpu)


def photos(count: int, sources: Sequence[Path]) -> list[bytes]:
    """JPEG files of all sizes, cut out of real pictures."""
    draw = random.Random(5)
    opened = [Image.open(path).convert("RGB") for path in sources]
    made = []
    for _ in range(count):
        picture = draw.choice(opened)
        width, height = (min(side, draw.randint(*SIDES)) for side in picture.size)
        left, top = draw.randint(0, picture.width - width), draw.randint(0, picture.height - height)
        packed = io.BytesIO()
        picture.crop((left, top, left + width, top + height)).save(packed, "JPEG", quality=85)
        made.append(packed.getvalue())
    return made


def requests_of(pictures: Sequence[bytes]) -> list[list[int]]:
    """Places of pictures that are sent together: one to four of them."""
    draw, left, found = random.Random(6), list(range(len(pictures))), []
    while left:
        size = draw.randint(1, 4)
        found.append(left[:size])
        left = left[size:]
    return found


Ask = Callable[[httpx.AsyncClient, list[int]], Any]
"""Send pictures by their places; their probabilities."""


async def arriving(url: str, asked: Sequence[list[int]], ask: Ask) -> dict[int, list[float]]:
    """All requests, from CLIENTS at once."""
    draw, waiting, found = random.Random(7), list(asked), {}

    async def client(http: httpx.AsyncClient) -> None:
        while waiting:
            places = waiting.pop()
            found.update(zip(places, await ask(http, places), strict=True))
            await asyncio.sleep(draw.expovariate(1 / PAUSE_SECONDS))

    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        await asyncio.gather(*(client(http) for _ in range(CLIENTS)))
    return found


def in_a_loop(weights: str, threads: int) -> None:
    """The process of the loop: packed pictures come in on standard input, one round a line."""
    torch.set_num_threads(threads)
    model, made_ready = mobilenet(weights), transform()
    for line in sys.stdin:
        files = [Path(name) for name in json.loads(line)]
        before, began = time.process_time(), time.perf_counter()
        found = []
        with torch.inference_mode():
            for file in files:
                picture = made_ready(Image.open(file).convert("RGB"))
                found.append(model(picture[None])[0].softmax(-1).tolist())
        taken = [time.perf_counter() - began, time.process_time() - before]
        print(json.dumps([*taken, found]), flush=True)


@contextmanager
def litserve(weights: str, threads: int) -> Iterator[tuple[str, psutil.Process]]:
    """LitServe's address and process, ready."""
    port = free_port()
    command = (str(HERE / "engines_litserve.py"), str(port), weights, str(threads))
    with started(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        while True:
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                assert process.poll() is None, "LitServe has ended"
            time.sleep(0.2)
        yield url, psutil.Process(process.pid)


def image_rows(
    weights: str,
    pictures: Sequence[bytes],
    threads: int,
    rounds: int,
    ours: tuple[str, psutil.Process],
    cpu_seconds: Callable[[psutil.Process], float],
    made: Path,
) -> list[str]:
    """The table's rows: all three in turn, ``rounds`` times."""
    packed = [b64encode(one).decode() for one in pictures]
    files = []
    for place, one in enumerate(pictures):
        files.append(str(made / f"{place}.jpg"))
        Path(files[-1]).write_bytes(one)
    asked = requests_of(pictures)

    async def of_ours(http: httpx.AsyncClient, places: list[int]) -> Any:
        body = {"model": "photos", "image": [packed[place] for place in places]}
        answer = await http.post("/v1/classify", json=body)
        assert answer.status_code == 200, answer.text
        return [one["probs"] for one in answer.json()["data"]]

    async def of_litserve(http: httpx.AsyncClient, places: list[int]) -> Any:
        answers = await asyncio.gather(
            *(http.post("/predict", json={"image": packed[place]}) for place in places)
        )
        for one in answers:
            assert one.status_code == 200, one.text
        return [one.json()["probs"] for one in answers]

    told = {name: Told() for name in ("ours", "torchvision in a loop", "LitServe")}
    loop_command = (str(HERE / "engines_images.py"), weights, str(threads))
    with (
        litserve(weights, threads) as peer,
        started(*loop_command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as loop,
    ):
        assert loop.stdin is not None
        assert loop.stdout is not None
        for turn in range(rounds + 1):  # the first one warms
            loop.stdin.write(json.dumps(files) + "\n")
            loop.stdin.flush()
            seconds, cpu, expected = json.loads(loop.stdout.readline())
            taken = {"torchvision in a loop": (seconds, cpu, expected)}
            for name, (url, process), ask in (
                ("ours", ours, of_ours),
                ("LitServe", peer, of_litserve),
            ):
                before, began = cpu_seconds(process), time.perf_counter()
                found = asyncio.run(arriving(url, asked, ask))
                seconds = time.perf_counter() - began
                probabilities = [found[place] for place in range(len(pictures))]
                taken[name] = (seconds, cpu_seconds(process) - before, probabilities)
            for name, (seconds, cpu, probabilities) in taken.items():
                sys.stderr.write(f"round {turn}, {name}: {seconds:.1f} s, {cpu:.1f} s of CPU\n")
                if turn:
                    told[name].note(len(pictures), seconds, cpu)
                difference = np.abs(np.array(probabilities) - np.array(expected)).max()
                told[name].apart = max(told[name].apart, float(difference))
    mine = told["ours"]
    rows = []
    for name, one in told.items():
        cells = [name]
        for values, own in ((one.rates, mine.rates), (one.per_cpu, mine.per_cpu)):
            ratio = "" if one is mine else f"{median(own) / median(values):.2f}"
            cells += [f"{median(values):.1f}", ratio]
        rows.append("| " + " | ".join([*cells, f"{one.apart:.0e}"]) + " |")
    return rows


if __name__ == "__main__":
    in_a_loop(sys.argv[1], int(sys.argv[2]))
