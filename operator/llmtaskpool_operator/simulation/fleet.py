"""The pods and their queue as an event simulation. Pure.

Each pod has a clock of its own that counts decode steps: a sequence that begins at step k and
has o tokens ends at step k + o, whatever happens between, and a prompt of P tokens is through
after P / chunk steps, or whole ones where none waits to share them. Only the duration of a step
changes, at events (a prompt is through, a sequence ends, one begins), so a pod jumps from event to
event over any number of steps.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf, log2

import numpy as np
from llmtaskpool_worker.scheduling.aged_share import DEFAULT_AGED_SHARE
from llmtaskpool_worker.scheduling.priority import QueuePolicy
from llmtaskpool_worker.scheduling.task_queue import TaskQueue, Waiting

from llmtaskpool_operator.simulation.pod import FULL, PREFILL_LOAD, Pod
from llmtaskpool_operator.simulation.service import PodModel
from llmtaskpool_operator.simulation.trace import Trace

OUTPUT_PRIOR, OUTPUT_WEIGHT = 150.0, 0.002
"""The running mean of output lengths (control.md, *What the worker must export*)."""
ARRIVAL_STEPS, HANDOVER_STEPS = 0.5, 1.0
"""Steps that others make before a prompt is in one: it comes in the middle of a step, and that a
place is free is known when the next step has begun."""
IDLE_ACTIVITY, FULL_ACTIVITY = 0.2, 0.9
"""SM activity of decoding: this much and rising with the batch, up to that at the knee."""


class Fleet:
    """The pods, the queue they share, and every request's times.

    ``first_token_at`` and ``done_at`` are inf until it happens; seconds from the trace's start.
    """

    def __init__(
        self, model: PodModel, trace: Trace, *, tpot_slo_seconds: float, queue: QueuePolicy | None,
        ageing_seconds: float, aged_share: float = DEFAULT_AGED_SHARE,
    ) -> None:  # fmt: skip
        self.model = model
        self.knee = model.knee(tpot_slo_seconds)
        per_token = model.seconds_per_token(tpot_slo_seconds)
        seconds = model.prefill(trace.uncached)
        chunks = trace.uncached.clip(min=1) / model.chunk_tokens
        self._arrival: list[float] = [*trace.arrival.tolist(), inf]
        self._output: list[int] = trace.output.tolist()
        self._prompt: list[int] = trace.prompt.tolist()
        self._kv_need: list[int] = (trace.prompt + trace.output).clip(max=model.kv_tokens).tolist()
        self._prefill: list[float] = seconds.tolist()
        self._chunks: list[float] = chunks.tolist()
        self._per_chunk: list[float] = (seconds / chunks).tolist()
        self._alone: list[float] = np.ceil(chunks).tolist()
        self._per_token, self._mean_output = per_token, OUTPUT_PRIOR
        share = (FULL_ACTIVITY - IDLE_ACTIVITY) / self.knee
        self._activity = [
            min(FULL_ACTIVITY, IDLE_ACTIVITY + share * b) if b else 0.0
            for b in range(len(model.step))
        ]
        n = len(trace)
        self.first_token_at = [inf] * n
        self.done_at = [inf] * n
        self._work = [0.0] * n
        self._next = 0
        self.pods: list[Pod] = []
        self._due: list[float] = [inf]
        self._loads: list[int] = [FULL]
        self._first_come = queue is None
        self.queue = TaskQueue(
            load=self._load, max_tasks=n + 1, max_bytes=1, ageing_seconds=ageing_seconds,
            aged_share=aged_share, policy=queue or QueuePolicy.PRIORITY,
        )  # fmt: skip
        self._head = -1
        self.queued = self.arrived = self.finished = 0
        self.queued_work = self.arrived_work = 0.0
        self._shared_out = 0.0

    def __len__(self) -> int:
        return len(self._output)

    def add(self, pod: Pod) -> None:
        """Let a pod exist; it takes work from ``open`` on."""
        self.pods.append(pod)
        self._due.insert(-1, inf)
        self._loads.insert(-1, FULL)

    def open(self, place: int, now: float) -> None:
        """The pod is ready."""
        pod = self.pods[place]
        pod.ready, pod.at = True, now
        self._pull(place, now)

    def drain(self, place: int) -> None:
        """The pod takes nothing more and goes when what it has is done."""
        self.pods[place].draining = True
        self._loads[place] = FULL

    def remove_gone(self, now: float) -> list[Pod]:
        """Take out the draining pods that are done (or never were ready)."""
        gone = [pod for pod in self.pods if pod.draining and not pod.running]
        for pod in gone:
            place = self.pods.index(pod)
            del self.pods[place], self._due[place], self._loads[place]
            # A pod that ended its last task between two ticks went then.
            pod.gone_at = max(pod.at, now - 1.0) if pod.ready else now
        return gone

    def set_threads(self, place: int, threads: int, now: float) -> None:
        """Change N of a pod; nobody who runs is stopped."""
        pod = self.pods[place]
        pod.threads = threads
        if pod.ready and not pod.draining:
            self._pull(place, now)

    def share_out_arrivals(self) -> None:
        """Count what arrived since the last time evenly on the pods that take tasks.

        A worker counts what reaches it; behind a balancer that is an even share.
        """
        serving = [pod for pod in self.pods if pod.ready and not pod.draining]
        if serving:
            each = (self.arrived_work - self._shared_out) / len(serving)
            self._shared_out = self.arrived_work
            for pod in serving:
                pod.arrived += each

    def unfinished_prefill(self, pod: Pod) -> float:
        """Pod-seconds of prompts that were taken and are not through."""
        waiting = sum(self._prefill[request] for request in pod.prefills)
        if pod.prefilling < 0:
            return waiting
        return waiting + max(0.0, pod.prefill_end - pod.k) * pod.prefill_step

    def advance(self, until: float) -> None:
        """Everything that happens before ``until``."""
        # The hottest loop: attributes are read once and calls are spelled out where they are short.
        due, loads, arrival, pods = self._due, self._loads, self._arrival, self.pods
        prefill, work, per_token = self._prefill, self._work, self._per_token
        step, activity = self.model.step, self._activity
        output, kv_need, alone = self._output, self._kv_need, self._alone
        done_at, kv_tokens = self.done_at, self.model.kv_tokens
        arrived_work, mean_output = self.arrived_work, self._mean_output
        at = self._next
        coming = arrival[at]
        now = min(due)
        while True:
            if coming <= now:
                if coming >= until:
                    break
                amount = work[at] = prefill[at] + mean_output * per_token
                arrived_work += amount
                least = min(loads)
                place = -1
                if least != FULL and not self.queued:
                    # To the pod with the least load, or to the queue if it doesn't fit there.
                    place = loads.index(least)
                    pod = pods[place]
                    kv = pod.kv + kv_need[at]
                if place < 0 or kv > kv_tokens:
                    self._mean_output = mean_output  # the queue's order depends on it
                    self._enqueue(at, coming)
                else:
                    pod.kv = kv
                    running = pod.running = pod.running + 1
                    loads[place] = FULL if running >= pod.threads else least + 1 + PREFILL_LOAD
                    if pod.prefilling >= 0:
                        pod.prefills.append(at)
                    else:
                        # The settle, prefill and due time of the general case, for one prompt.
                        passed = coming - pod.at
                        k = pod.k
                        if passed > 0:
                            k = pod.k = k + passed / pod.period
                            pod.sm_seconds += passed * pod.activity
                            if running > 1:
                                pod.busy_seconds += passed
                            pod.at = coming
                        pod.prefilling = at
                        steps = alone[at] + (ARRIVAL_STEPS if pod.batch else 0.0)
                        end = pod.prefill_end = k + steps
                        pod.activity = 1.0
                        each = pod.prefill_step = prefill[at] / steps
                        pod.period = period = step[pod.batch] + each
                        finishes = pod.finishes
                        if finishes and finishes[0][0] < end:
                            end = finishes[0][0]
                        due[place] = coming + (end - k) * period
                        now = min(due)
                at += 1
                coming = arrival[at]
                continue
            if now >= until:
                break
            place = due.index(now)
            pod = pods[place]
            finishes = pod.finishes
            passed = now - pod.at
            pod.at = now
            pod.sm_seconds += passed * pod.activity
            pod.busy_seconds += passed
            if finishes and finishes[0][0] <= pod.prefill_end:
                pod.k, request = heappop(finishes)
                pod.batch -= 1
                done_at[request] = now
                self.finished += 1
                pod.done_work += work[request]
                pod.kv -= kv_need[request]
                running = pod.running = pod.running - 1
                mean_output += OUTPUT_WEIGHT * (output[request] - mean_output)
                if not pod.draining:
                    if self.queued:
                        self._mean_output = mean_output
                        self._pull_into(place, pod)
                    elif running >= pod.threads:
                        loads[place] = FULL
                    else:
                        prompts = len(pod.prefills) + (pod.prefilling >= 0)
                        loads[place] = running + PREFILL_LOAD * prompts
            else:
                self._mean_output = mean_output
                self._prefilled(place, pod, now)
                mean_output = self._mean_output
            request = pod.prefilling
            if request >= 0:
                pod.activity = 1.0
                pod.period = period = step[pod.batch] + pod.prefill_step
                end = pod.prefill_end
                if finishes and finishes[0][0] < end:
                    end = finishes[0][0]
                due[place] = now + (end - pod.k) * period
            elif finishes:
                batch = pod.batch
                pod.activity = activity[batch]
                pod.period = period = step[batch]
                due[place] = now + (finishes[0][0] - pod.k) * period
            else:
                pod.activity = 0.0
                pod.period = due[place] = inf
            now = min(due)
        self.arrived = self._next = at
        self.arrived_work, self._mean_output = arrived_work, mean_output

    def _begin_prefill(self, pod: Pod, *, packed: bool) -> None:
        """The next prompt; ``packed``: it goes on in the step in which another one ended."""
        request = pod.prefilling = pod.prefills.popleft()
        if packed:
            steps, pod.prefill_step = self._chunks[request], self._per_chunk[request]
        else:
            steps = self._alone[request] + (HANDOVER_STEPS if pod.batch else 0.0)
            pod.prefill_step = self._prefill[request] / steps
        pod.prefill_end = pod.k + steps

    def _prefilled(self, place: int, pod: Pod, now: float) -> None:
        pod.k = pod.prefill_end
        request = pod.prefilling
        self.first_token_at[request] = now
        if pod.prefills:
            self._begin_prefill(pod, packed=True)
        else:
            pod.prefilling, pod.prefill_end = -1, inf
        if self._loads[place] != FULL:
            self._loads[place] -= PREFILL_LOAD
        tokens = self._output[request] - 1
        if tokens:
            pod.batch += 1
            heappush(pod.finishes, (pod.k + tokens, request))
        else:
            self._finish(place, pod, request, now)

    def _finish(self, place: int, pod: Pod, request: int, now: float) -> None:
        self.done_at[request] = now
        self.finished += 1
        pod.done_work += self._work[request]
        pod.kv -= self._kv_need[request]
        pod.running -= 1
        self._mean_output += OUTPUT_WEIGHT * (self._output[request] - self._mean_output)
        if pod.draining:
            return
        if self.queued:
            self._pull_into(place, pod)
        else:
            self._loads[place] = pod.load()

    def _pull(self, place: int, now: float) -> None:
        """Let a pod take from the queue what it has room for."""
        pod = self.pods[place]
        pod.settle(now)
        self._pull_into(place, pod)
        if pod.prefilling >= 0:
            pod.activity = 1.0
            pod.period = self.model.step[pod.batch] + pod.prefill_step
            end = min(pod.prefill_end, pod.finishes[0][0] if pod.finishes else inf)
            self._due[place] = now + (end - pod.k) * pod.period

    def _pull_into(self, place: int, pod: Pod) -> None:
        while pod.running < pod.threads and self.queued:
            request = self._take(pod.at)
            if pod.kv + self._kv_need[request] > self.model.kv_tokens:
                self._head = request
                break
            self._head = -1
            self.queued -= 1
            # What rounding leaves below 0 would be a fault of the sample, and no fall would come.
            self.queued_work = max(0.0, self.queued_work - self._work[request])
            pod.kv += self._kv_need[request]
            pod.running += 1
            pod.prefills.append(request)
        if pod.prefilling < 0 and pod.prefills:
            self._begin_prefill(pod, packed=False)
        self._loads[place] = pod.load()

    def _enqueue(self, request: int, now: float) -> None:
        size = 0 if self._first_come else round(2 * log2(self._prompt[request]))
        self.queue.push(Waiting(str(request), None, size, 1.0, now))
        self.queued += 1
        self.queued_work += self._work[request]

    def _take(self, now: float) -> int:
        """The request that goes next; one that found no room before keeps its turn."""
        if self._head >= 0:
            return self._head
        item = self.queue.take(now, lambda _: True)
        assert item is not None  # noqa: S101 - asked only while somebody is queued
        return int(item.id)

    def _load(self, size: object) -> float:
        """T of a cost class, which here is half an octave of prompt tokens."""
        if self._first_come or not isinstance(size, int):
            return 1.0
        tokens = 2 ** (size / 2)
        points = self.model.prefill_points
        slope = points[-1][1] / points[-1][0]
        return slope * tokens + self._mean_output * self._per_token
