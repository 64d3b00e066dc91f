"""Judges a history of the shared queue, offline: each broken promise by its name.

The promises: what was accepted is there, and ends. No task starts more often than K. One result is
committed, and it is the one that is read. No claim commits once a later one was given. A confirmed
cancel is the end. No lease is taken early. One task for a key. Dependants begin after enough of
what they depend on. Nobody of higher P certainly stood in line when another was given. Who has aged
starts within the bound.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from itertools import pairwise
from math import inf

from queue_soak.history import Event

ENDS = frozenset("SFCXD")
Problems = dict[str, list[str]]


class Judge:
    """Events sorted and grouped; each method adds the broken promises that it finds."""

    def __init__(self, events: list[Event]) -> None:
        events = sorted(events, key=lambda e: e["t"])
        self.config = next(e for e in events if e["e"] == "config")
        kinds: dict[str, list[Event]] = defaultdict(list)
        for e in events:
            kinds[e["e"]].append(e)
        self.final = {e["id"]: e for e in kinds["final"]}
        self.accepts = kinds["accept"]
        self.accepted = {e["id"]: e for e in kinds["accept"] if e["out"] == "ok"}
        self.claims = _by_id([{**e, "out": "ok"} for e in kinds["claim"]])
        self.starts = _by_id(kinds["start"])
        told = {(e["id"], e["by"], e["t0"]) for e in kinds["commit"] if e["out"] != "unknown"}
        self.commits = _by_id(
            [
                e
                for e in kinds["commit"]
                if e["out"] != "unknown" or (e["id"], e["by"], e["t0"]) not in told
            ]
        )
        self.cancels = {e["id"]: e for e in kinds["cancel"] if e["out"] == "C"}
        self.renewed: dict[tuple[str, str], list[float]] = defaultdict(list)
        for e in kinds["renew"]:
            if e["out"] == "ok":
                self.renewed[e["id"], e["fence"]].append(e["t0"])
        self.released = {(e["id"], e["fence"]) for e in kinds["release"]}
        deaths = sorted((e["t"], e["since"]) for e in kinds["crash"] if e["what"] == "server")
        self.died = [t for t, _ in deaths]
        self.since = [since for _, since in deaths]
        self.bad: Problems = defaultdict(list)

    def excused(self, e: Event) -> bool:
        """Whether what this call was told was in what a death of the server took with it.

        Its answer may have been read late: it counts from when the call was sent.
        """
        i = bisect_left(self.died, e["t0"])
        return i < len(self.died) and self.since[i] < e["t"]

    def kept(self) -> None:
        for id, e in self.accepted.items():
            if id not in self.final:
                if not self.excused(e):
                    self.bad["lost"].append(id)
            elif self.final[id]["s"] not in ENDS:
                self.bad["never ended"].append(f"{id} {self.final[id]['s']}")

    def attempts(self) -> None:
        for id, starts in self.starts.items():
            taken = self.claims[id] + self.commits[id]
            gone = {(c["by"], c["fence"]) for c in taken if c["out"] != "lost" and self.excused(c)}
            back = sum(1 for e in starts if (id, e["fence"]) in self.released)
            counted = sum(1 for e in starts if (e["by"], e["fence"]) not in gone) - back
            if counted > self.config["attempts"]:
                self.bad["more than K attempts"].append(f"{id} {len(starts)}")

    def results(self) -> None:
        for id, commits in self.commits.items():
            ok = [e for e in commits if e["out"] == "ok"]
            unknown = [e for e in commits if e["out"] == "unknown"]
            by = {(e["by"], e["fence"]) for e in ok}
            if len(by) > 1 and not any(self.excused(e) for e in ok[:-1]):
                self.bad["committed twice"].append(id)
            end = self.final.get(id)
            if end is None:
                continue
            if end["s"] in "SF" and end.get("hash"):
                if end["hash"] not in {e["hash"] for e in ok + unknown}:
                    self.bad["a result that nobody committed"].append(id)
                elif ok and not (unknown or end["hash"] == ok[-1]["hash"] or self.excused(ok[-1])):
                    self.bad["the result is another's"].append(id)
            if ok and end["s"] not in "SF" and not self.excused(ok[-1]):
                self.bad["committed and then not"].append(f"{id} {end['s']}")
        for id, end in self.final.items():
            if end["s"] == "S" and not self.commits[id]:
                self.bad["succeeded without a commit"].append(id)

    def fences(self) -> None:
        for id, claims in self.claims.items():
            for e in self.commits[id]:
                own = [c for c in claims if c["by"] == e["by"] and c["t"] <= e["t0"]]
                if e["out"] != "ok" or not own or self.excused(e):
                    continue
                mine = max(own, key=lambda c: c["t"])
                if any(c["t0"] > mine["t"] and c["t"] < e["t0"] for c in claims if c is not mine):
                    self.bad["an old claim committed"].append(f"{id} {e['fence']}")

    def cancelled(self) -> None:
        for id, cancel in self.cancels.items():
            if self.excused(cancel):
                continue
            if any(e["t0"] > cancel["t"] for e in self.claims[id]):
                self.bad["given out after a confirmed cancel"].append(id)
            if any(e["out"] == "ok" and e["t0"] > cancel["t"] for e in self.commits[id]):
                self.bad["committed after a confirmed cancel"].append(id)
            if id in self.final and self.final[id]["s"] != "C":
                self.bad["cancelled and then not"].append(f"{id} {self.final[id]['s']}")

    def leases(self) -> None:
        if self.died:
            return  # after a death nobody knows which renewals were kept
        for id, claims in self.claims.items():
            for one, then in pairwise(sorted(claims, key=lambda e: e["t"])):
                if (id, one["fence"]) in self.released:
                    continue
                renewed = self.renewed[id, one["fence"]]
                until = max([one["t0"], *renewed]) + self.config["lease"]
                if then["t"] < until - 0.005:
                    self.bad["a lease taken early"].append(f"{id} by {until - then['t']:.3f} s")

    def keys(self) -> None:
        ids: dict[str, set[str]] = defaultdict(set)
        for e in self.accepts:
            if e.get("key") and e["out"] in ("ok", "same"):
                known = e.get("known") or e["id"]
                if known in self.final or not self.excused(e):  # else it went, and its key with it
                    ids[e["key"]].add(known)
        self.bad["two tasks for one key"] += [key for key, known in ids.items() if len(known) > 1]

    def dependants(self) -> None:
        well: dict[str, float] = {}
        for id, commits in self.commits.items():
            times = [e["t0"] for e in commits if e["s"] == "S" and e["out"] != "lost"]
            if times:
                well[id] = min(times)
        for id, e in self.accepted.items():
            for claim in self.claims[id] if e.get("deps") else ():
                if sum(well.get(d, inf) < claim["t"] for d in e["deps"]) < e["need"]:
                    self.bad["begun before what it depends on"].append(id)
                    break

    def order(self) -> None:
        """Of first claims: task A was given while B, stronger, certainly stood in line.

        Certainly: B was accepted before the claim of A was sent, and first given by a claim that
        was sent after A's had answered. What has aged may go first; what others wait for has their
        weight.
        """
        loads = self.config.get("loads")
        if not loads:
            return
        ageing = self.config.get("ageing") or inf
        heirs = {d for e in self.accepted.values() for d in e.get("deps") or ()}
        first = []
        for id, e in self.accepted.items():
            if self.claims[id] and not e.get("deps"):
                c = min(self.claims[id], key=lambda one: one["t"])
                if c["attempt"] == 1:  # else its first died with a worker that could not say so
                    rank = e["w"] / loads[e["k"]]
                    first.append((rank, e["t"], c["t0"], c["t"], id, e["t0"]))
        by_claim = sorted(first, key=lambda one: one[2])
        sent = [one[2] for one in by_claim]
        best = -inf
        strongest = [best] * (len(by_claim) + 1)
        for i in range(len(by_claim) - 1, -1, -1):
            best = max(best, by_claim[i][0])
            strongest[i] = best
        for rank, _, t0, t, id, said_at in first:
            i = bisect_right(sent, t)
            if t - said_at >= ageing or id in heirs or strongest[i] <= rank * 1.0001:
                continue
            for other in by_claim[i:]:
                if other[0] > rank * 1.0001 and other[1] < t0 and other[4] not in heirs:
                    told = f"{id} P={rank:.3g} before {other[4]} P={other[0]:.3g}"
                    self.bad["not in order"].append(told)
                    break

    def aged(self) -> None:
        """Of all that starts while somebody has aged, ``share`` goes to the oldest.

        So when X thread-seconds have started between the time that a task had aged and its own
        start, at least share * X less two tasks were of older ones: else it would have been next.
        """
        share, ageing, loads = (self.config.get(name) for name in ("share", "ageing", "loads"))
        if not (share and ageing and loads):
            return
        given = []
        for id, e in self.accepted.items():
            if self.claims[id] and not e.get("deps"):
                given.append((min(c["t"] for c in self.claims[id]), e["t"], loads[e["k"]], id))
        given.sort()
        times = [one[0] for one in given]
        slack = 2 * max(loads.values()) + 0.3 * self.config["capacity"] * share
        for start, came, _, id in given:
            if start <= came + ageing:
                continue
            between = given[bisect_right(times, came + ageing) : bisect_left(times, start)]
            all_of = sum(one[2] for one in between)
            older = sum(one[2] for one in between if one[1] < came)
            if older < share * all_of - slack:
                told = f"{id}: {older:.2f} thread-seconds of {all_of:.2f} were for its elders"
                self.bad["waited beyond the bound"].append(told)


def check(events: list[Event]) -> Problems:
    """Broken promises by their name; none means that the history is explained."""
    judge = Judge(events)
    for look in (
        judge.kept,
        judge.attempts,
        judge.results,
        judge.fences,
        judge.cancelled,
        judge.leases,
        judge.keys,
        judge.dependants,
        judge.order,
        judge.aged,
    ):
        look()
    return {name: cases for name, cases in judge.bad.items() if cases}


def _by_id(events: list[Event]) -> dict[str, list[Event]]:
    out: dict[str, list[Event]] = defaultdict(list)
    for e in events:
        out[e["id"]].append(e)
    return out
