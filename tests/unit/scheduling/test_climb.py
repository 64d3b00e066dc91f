"""N at a server, learned from what it delivers: over simulated servers of several kinds.

A server's requests share steps: a step over n of them takes ``step(n)`` seconds, and each prompt
adds to the step that reads it. There is always one more that waits. Noise is twofold: of each step,
and of a level that drifts within seconds, as on a machine that others use.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import exp, sqrt

import pytest
from llmtaskpool_worker.scheduling.climb import START, STEP, Climb, most_tried
from llmtaskpool_worker.scheduling.delivery import Delivery, Stretch

DRIFT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Load:
    """Answers' tokens from the one to the other, prompts' tokens; what else makes steps slower."""

    least: int = 24
    longest: int = 24
    prompt: int = 50
    noise: float = 0.0
    drift: float = 0.0


@dataclass(frozen=True, slots=True)
class Server:
    """Its ``most`` requests, its step's seconds by requests, and those of a prompt's token."""

    most: int
    step: Callable[[int], float]
    read: float = 0.0

    def rate(self, n: int, load: Load) -> float:
        """Tokens of answers a second with so many in flight all the time."""
        tokens = (load.least + load.longest) / 2
        return n * tokens / (tokens * self.step(n) + n * load.prompt * self.read)

    def best(self, load: Load) -> float:
        return max(self.rate(n, load) for n in range(1, self.most + 1))


FALLS = {1: 32.2, 2: 44.6, 4: 50.9, 6: 57.4, 8: 56.4, 12: 53.2, 16: 46.1}
"""Tokens a second by requests in flight: a server that is best with six."""
RESTS = {1: 28.0, 4: 45.0, 6: 48.6, 8: 51.0, 11: 52.8, 15: 62.6, 16: 67.5}
"""As found of llama.cpp's server with one thread: hardly more from 4 to 11, and more again."""


def swept(n: int, rates: dict[int, float]) -> float:
    less = max(size for size in rates if size <= n)
    more = min(size for size in rates if size >= n)
    share = 0.0 if more == less else (n - less) / (more - less)
    return n / (rates[less] + share * (rates[more] - rates[less]))


SERVERS = {
    "one after the other": Server(64, lambda n: 0.02 * n),
    "best with six": Server(16, partial(swept, rates=FALLS)),
    "best with all, after a rest": Server(16, partial(swept, rates=RESTS)),
    "eight slots, and a queue inside": Server(64, lambda n: 0.05 * max(1.0, n / 8)),
    "a knee at 95": Server(256, lambda n: 0.02 + 0.004 * n),
    "a GPU, 64 places": Server(64, lambda n: 0.03 + 0.0002 * n),
    "a GPU, 256 places": Server(256, lambda n: 0.03 + 0.0005 * n, 0.00002),
    "a CPU that reads slowly": Server(32, lambda n: 0.02 + 0.01 * n, 0.002),
}
LOADS = {
    "alike": Load(),
    "short and long": Load(5, 60, drift=0.1),
    "long prompts": Load(8, 24, prompt=1000, drift=0.05),
    "long answers": Load(100, 1000, prompt=300, drift=0.1),
    "a busy machine": Load(noise=0.2, drift=0.1),
}


@dataclass(slots=True)
class Ran:
    climb: Climb
    rate: float
    """Tokens of answers a second over the whole time."""
    in_flight: list[int]


def run(
    server: Server,
    load: Load,
    *,
    seed: int = 0,
    seconds: float = 60.0,
    start: float = 0.0,
    climb: Climb | None = None,
    threads: Callable[[float], int] = lambda _: 1 << 20,
) -> Ran:
    drawn, climb, delivery = random.Random(seed), climb or Climb(), Delivery()
    now, level = start, 0.0
    running: list[list[int]] = []
    ran = Ran(climb, 0.0, [])
    while now < start + seconds:
        while len(running) < min(climb.wanted, server.most, threads(now)):
            running.append([drawn.randint(load.least, load.longest), load.prompt])
        n = len(running)
        delivery.count(n, now)
        step = server.step(n)
        share = exp(-step / DRIFT_SECONDS)
        level = level * share + load.drift * sqrt(1 - share**2) * drawn.gauss(0, 1)
        reading = sum(prompt for _, prompt in running) * server.read
        now += (step + reading) * exp(level + load.noise * drawn.gauss(0, 1))
        found = [delivery.read(sum(prompt for _, prompt in running), now), delivery.drew(n, now)]
        running = [[left - 1, 0] for left, _ in running]
        ran.rate += n
        ran.in_flight.append(n)
        running = [request for request in running if request[0]]
        delivery.count(len(running), now)
        for stretch in found:
            if stretch is not None:
                climb.take_in(stretch, server.most, threads(now), now)
    ran.rate /= now - start
    return ran


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("server", SERVERS)
def test_within_a_minute_n_has_85_percent_of_the_best_rate_that_a_sweep_finds(server, load):
    server, load = SERVERS[server], LOADS[load]
    learned = [run(server, load, seed=seed).climb.home for seed in range(4)]
    shares = sorted(server.rate(n, load) / server.best(load) for n in learned)
    assert shares[2 if load.noise else 1] >= 0.85, f"of {learned}"


@pytest.mark.parametrize("load", ["short and long", "long answers"])
@pytest.mark.parametrize("server", ["a GPU, 64 places", "a knee at 95"])
def test_learning_and_trying_cost_little_in_the_long_run(server, load):
    server, load = SERVERS[server], LOADS[load]
    ran = run(server, load, seed=3, seconds=300.0)
    assert ran.rate >= 0.85 * server.best(load)


def test_where_more_is_always_better_all_places_are_used_and_less_is_hardly_tried():
    server, load = SERVERS["a GPU, 64 places"], LOADS["alike"]
    ran = run(server, load, seconds=300.0)
    late = ran.in_flight[len(ran.in_flight) // 4 :]
    assert ran.climb.home == server.most
    assert sum(n == server.most for n in late) >= 0.95 * len(late)
    assert ran.rate >= 0.97 * server.best(load)


def test_a_server_that_is_best_with_few_is_not_given_many_again_and_again():
    server, load = SERVERS["best with six"], LOADS["alike"]
    ran = run(server, load, seconds=300.0)
    late = ran.in_flight[len(ran.in_flight) // 4 :]
    assert ran.climb.home in range(5, 9)
    assert max(late) <= 8 * STEP
    assert ran.rate >= 0.95 * server.best(load)


def test_what_was_best_is_left_when_the_server_changes():
    before, after = SERVERS["best with six"], SERVERS["a GPU, 64 places"]
    load = LOADS["alike"]
    climb = run(before, load, seconds=120.0).climb
    ran = run(after, load, start=120.0, seconds=600.0, climb=climb)
    assert after.rate(ran.climb.home, load) >= 0.85 * after.best(load)


def test_all_that_is_asked_becoming_slower_is_no_reason_to_send_less():
    server, load = SERVERS["a GPU, 64 places"], Load(drift=0.02)
    climb = run(server, load, seconds=60.0).climb
    slower = Server(64, lambda n: 5 * server.step(n))
    ran = run(slower, load, start=60.0, seconds=120.0, climb=climb)
    assert slower.rate(ran.climb.home, load) >= 0.85 * slower.best(load)


BUMPY = {1: 28.3, 2: 35.4, 4: 45.0, 6: 46.8, 8: 46.5, 12: 50.2, 16: 60.0}
"""As found of the same server on two cores."""


@pytest.mark.parametrize("rates", [RESTS, BUMPY])
def test_a_level_that_drifts_is_not_taken_for_a_knee(rates):
    """Each number is measured for some seconds, and between two of them all can become slower."""
    server, load = Server(16, partial(swept, rates=rates)), Load(prompt=30, drift=0.2)
    learned = [run(server, load, seed=seed, seconds=150.0).climb.home for seed in range(12)]
    good = [n for n in learned if server.rate(n, load) >= 0.85 * server.best(load)]
    assert len(good) >= 10, f"of {learned}"


def test_fewer_are_not_tried_while_it_is_known_that_they_bring_less():
    server = Server(16, partial(swept, rates=BUMPY))
    ran = run(server, Load(prompt=30), seconds=150.0)
    settled = ran.in_flight.index(16)
    late = [n for n in ran.in_flight[settled + 100 :] if n < 14]
    assert len(late) < 0.02 * len(ran.in_flight)


def test_a_lane_that_grows_is_followed_and_one_that_does_not_leaves_it_open():
    server, load = SERVERS["a GPU, 256 places"], LOADS["alike"]
    grown = run(server, load, threads=lambda now: 4 + int(4 * now), seconds=90.0)
    assert grown.climb.home == server.most
    small = run(server, load, threads=lambda _: 10)
    assert small.climb.doubling, "what more would bring is not known"
    bent = run(SERVERS["best with six"], load, threads=lambda _: 14, seconds=90.0)
    assert bent.climb.home <= 9, "that fewer are better is known with some threads too"


def test_no_more_are_tried_than_it_says_and_never_fewer_than_the_start():
    for seed in range(3):
        climb, drawn, now = Climb(), random.Random(seed), 0.0
        for _ in range(300):
            now += drawn.uniform(1.0, 10.0)
            climb.take_in(
                Stretch(drawn.choice([1, climb.wanted, climb.home]), drawn.uniform(1, 1000)),
                64,
                64,
                now,
            )
            assert START <= climb.home <= 64 or climb.doubling
            assert START <= climb.wanted <= 128
            if not climb.doubling:
                assert climb.wanted - climb.home <= most_tried(climb.home)


def test_a_small_server_gets_all_that_it_has():
    for most in (1, 2, 3, 4):
        ran = run(Server(most, lambda n: 0.02 * n), Load(), seconds=120.0)
        assert min(ran.climb.wanted, most) == most
        assert max(ran.in_flight) == most
