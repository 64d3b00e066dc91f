"""The page that `upstream.py` writes of its numbers."""

from __future__ import annotations

_PAGE = """\
# A pool in front of a server

`python benchmarks/upstream.py`: llama.cpp's server with SmolLM2-135M, {cores} cores, the machine's
load average at the start was {load:.1f}. Rounds are interleaved.

**Order.** {order_slots} slots; {urgent} urgent requests; bulk streams of {bulk_tokens} tokens, all
of them read, so that none of them can make way.

| an urgent request's wait for its first token | p50, ms | p95, ms |
| --- | ---: | ---: |
| in the pool, nothing else | {alone_p50_ms:,.0f} | {alone_p95_ms:,.0f} |
| in the pool, behind {backlog} bulk requests | {behind_p50_ms:,.0f} | {behind_p95_ms:,.0f} |
| straight to the server, behind the same (one, cut after {straight_at_most:.0f} s) \
| {straight_ms:,.0f} | |

p95 behind the backlog over p95 alone: **{order_ratio:.2f}** (wanted: at most 1.5). The longest wait
of a backlog's first urgent one: {behind_first_ms:,.0f} ms.

**N.** {slots} slots, tokens per second at fixed numbers of streams, each kept up:

| {sizes} |
| {dashes} |
| {speeds} |

The last N that is worth its streams (each brings a twentieth of the mean) is **{best_n}**, the
fastest {fastest_n}. Learned within a minute of load: **{learned_n}**, where the sweep has
{learned_percent:.0f} % of its best (wanted: within 15 %). On the way, each five seconds: {way}.

**Throughput.** The same requests, tokens per second: {pool_tokens_per_second:.1f} through the pool,
{server_tokens_per_second:.1f} straight to the server, {fastest_n} at once; the median of the
rounds' ratios is **{throughput_ratio:.3f}** (wanted: at least 0.97).

**First token.** Of pairs of requests, one through the pool and one straight, the difference is
**{first_token_p50_ms:.1f} ms** at p50 (wanted: at most 5) and **{first_token_p99_ms:.1f} ms** at
p99 (wanted: at most 15). By themselves they took {first_pool_p50_ms:.1f} and
{first_straight_p50_ms:.1f} ms at p50, {first_pool_p99_ms:.1f} and {first_straight_p99_ms:.1f} ms
at p99.

**Leaving.** {leavers:,} clients left after their first token, {leavers_per_second:.0f} a second;
{rest_seconds:.2f} s later the server had {left_at_server:.0f} requests, the worker
{left_in_flight:.0f} in flight and {left_in_slots:.0f} slots taken.
"""
_STOPPED = """
**Standing still.** The server stood still (SIGSTOP) with streams in flight: the worker was unready
after {stop_noticed:.1f} s (wanted: within 40) and said `{told}`; {ready_again:.1f} s after SIGCONT
it was ready.
"""


def page(found: dict) -> str:
    """The numbers as a page; seconds become milliseconds where they are small."""
    rates = found["rates"]
    values = found | {
        "sizes": " | ".join(str(size) for size in rates),
        "dashes": " | ".join("---:" for _ in rates),
        "speeds": " | ".join(f"{one:.1f}" for one in rates.values()),
        "way": ", ".join(map(str, found["learned_on_the_way"][::5])),
        "learned_percent": 100 * found["learned_rate_over_best"],
    }
    small = ("alone_", "behind_", "straight", "first_")
    values |= {f"{k}_ms": 1000 * v for k, v in found.items() if k.startswith(small)}
    text = _PAGE.format(**values)
    if "stop_noticed" in found:
        told = ", ".join(f"{name}: {code}" for name, code in found["stop_told"].items())
        text += _STOPPED.format(**found, told=told)
    return text
