"""Faults that are put into the queue's scripts on purpose: the checker has to find each."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmtaskpool_worker.brokers.redis import scripts


@dataclass(frozen=True, slots=True)
class Fault:
    """Texts of scripts replaced by others, and words of which the checker has to say one.

    ``needs``: what must happen to the queue for it to do harm.
    """

    says: tuple[str, ...]
    changes: tuple[tuple[str, str, str], ...] = ()
    needs: frozenset[str] = field(default_factory=frozenset)


COMMIT = "if m[1] == 'r' and m[2] == fence and not here[id] then"
LEASE = "leased[#leased + 1], leased[#leased + 2] = lease_text, id"
BEST = "if r > highest then best, highest, second = i, r, highest"
WORST = "if r > 0 and (not best or r < highest) then best, highest, second = i, r, math.huge"
_STILL_RUNS = """  elseif b.s == 'r' then
    out[#out + 1] = '+' .. s
  else
    if b.s == 'q' then"""
FAULTS: dict[str, Fault] = {
    "no fence": Fault(("committed",), (("commit", COMMIT, "if m[1] then"),)),
    "no lease for a quarter": Fault(
        ("never ended",),
        (("claim", LEASE, f"if tonumber(string.sub(id, -1), 16) > 3 then {LEASE} end"),),
    ),
    "attempts are not counted": Fault(
        ("attempts",),
        (
            ("claim", "'a', attempts + 1, 'f'", "'a', 0, 'f'"),
            ("common", "'a', counted and b.a or b.a - 1", "'a', 0"),
        ),
        frozenset({"poison"}),
    ),
    "a cancel leaves it in line": Fault(
        ("cancel",),
        (
            ("close", "      leave_line(id, b)\n      hold(b, -1)\n    elseif", "    elseif"),
            ("claim", "m[1] ~= 'q' or not READS", "not m[1] or not READS"),
        ),
    ),
    "accept says ok before it writes": Fault(
        ("lost",),
        (
            (
                "accept",
                "b.u, b.s = t, s",
                "if string.sub(id, -1) == '0' then return { 'ok', id, t, 'q' } end b.u, b.s = t, s",
            ),
        ),
    ),
    "a lease runs out early": Fault(
        ("early",), (("claim", LEASE, LEASE.replace("lease_text", "t + lease / 10")),)
    ),
    "a key is forgotten": Fault(
        ("key",), (("accept", "call('SET', p .. ':i:' .. key, id .. ' ' .. print)", ""),)
    ),
    "the weakest goes first": Fault(
        ("order",),
        (("claim", BEST, WORST),),
    ),
    "one fence for all": Fault(
        ("old claim",),
        (("claim", "fence .. '.' .. taken", "'7'"),),
        frozenset({"stale commits"}),
    ),
    "the fence is a counter": Fault(
        ("old claim", "committed twice", "another's"),
        (
            (
                "claim",
                "fence .. '.' .. taken",
                "tostring(call('HINCRBY', p .. ':t:' .. id, 'fc', 1))",
            ),
        ),
        frozenset({"cut"}),
    ),
    "a dependant begins too early": Fault(
        ("depends",), (("ended", "if ok >= need or", "if ok >= need - 1 or"),)
    ),
    "a lost commit overwrites the result": Fault(
        ("result",),
        (
            (
                "commit",
                "    out[#out + 1] = 0\n",
                "    call('SET', p .. ':r:' .. id, ARGV[3 + i], 'PX', ttl)\n"
                "    call('HDEL', tk, 'o')\n"
                "    out[#out + 1] = 0\n",
            ),
        ),
        frozenset({"stale commits"}),
    ),
    "what is cancelled may commit": Fault(
        ("cancel",),
        (("close", "  else\n    if b.s == 'q' then", _STILL_RUNS),),
    ),
    "the aged have no share": Fault(
        ("beyond the bound",),
        (("claim", "share > 0 and credit >= 0", "share > 0 and credit > 1e9"),),
        frozenset({"ageing"}),
    ),
    "no append-only file": Fault(("lost",), (), frozenset({"volatile"})),
}


def scripts_with(name: str | None) -> dict[str, scripts.Script]:
    """All scripts with this fault in them; None: as they are."""
    parts = dict(scripts.parts())
    for script, old, new in FAULTS[name].changes if name is not None else ():
        if parts[script].count(old) != 1:
            raise LookupError(f"the place of {name!r} in {script}.lua is not there any more: {old}")
        parts[script] = parts[script].replace(old, new)
    return {one: scripts.build(one, parts) for one in scripts.scripts()}
