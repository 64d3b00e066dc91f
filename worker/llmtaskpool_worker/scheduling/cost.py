"""T of P = W / T and the unit of offered work, learned from what finished.

T of a generation, in thread-seconds at the engine's efficient batch size k::

    T = prefill(prompt tokens) + E[output tokens] x step(k) / k

where prefill is what a prompt adds to steps that are made anyway (the design, section 1), without
the share of it that finished tasks of the class had not to compute.
Tasks are priced per class (kind, model, size bucket), half an octave of
prompt tokens and an octave of max_tokens wide, so a queue of any length holds few different T.
Other kinds cost the learned mean of their class. Pure.
"""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from json import dumps, loads
from math import ceil, log2
from statistics import median
from typing import NamedTuple

from llmtaskpool_worker.scheduling.curves import GRID, Curve, RobustMean
from llmtaskpool_worker.scheduling.profile import LEAST_SHARE, CalibrationProfile
from llmtaskpool_worker.scheduling.reuse import Reuse
from llmtaskpool_worker.scheduling.task import (
    WHOLE_ROUTES,
    Embed,
    Evaluate,
    Forward,
    Generate,
    TaskRequest,
    Transcribe,
)

OUTPUT_QUANTILE = 0.6
OUTPUT_PRIOR_TOKENS = 150
ENOUGH = 8
"""A class speaks for itself from so many finished tasks on; before, its kind and model do."""
CALL_PRIOR_SECONDS = 0.5
READS = frozenset(
    {"embed", "rerank", "score", "classify", "tag", "answer", "detect", "infer", "transcribe"}
)
"""Kinds whose cost is that of reading their tokens, until one of them has finished."""
FORWARD_PRIOR_TOKENS = 4096
"""The most output that is expected of a server behind a model, where a request has no bound."""
TOKENS_PER_LETTER = 0.25
"""Of prompts that nobody has counted, until a server's usage tells more."""
LETTERS_ENOUGH = 32
"""Shorter prompts say little of it: a chat template alone is some ten tokens."""
KNEE_SHARE_OF_SLO = 0.4
"""The knee keeps a step within this share of the time-per-token objective (control.md)."""
FRESH_STEPS = 16
"""The last steps that say how fast the engine is now."""
EFFICIENT_SHARE = 0.9
"""The efficient batch is the smallest that reaches this share of the best throughput."""


class CostClass(NamedTuple):
    """Tasks that are priced alike. Buckets are logarithmic; ``fixed``: the length is known."""

    kind: str
    model: str | None
    size: int
    output: int = 0
    fixed: bool = False

    @property
    def text(self) -> str:
        """As others keep it; ``of`` reads it again."""
        return _text_of(self)

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(text: str) -> CostClass:
        """What ``text`` was made of. What nobody wrote is a class of its own, priced by default."""
        try:
            kind, model, size, output, fixed = loads(text)
            return CostClass(str(kind), model, int(size), int(output), bool(fixed))
        except (ValueError, TypeError):
            return CostClass("", None, 1)


@lru_cache(maxsize=4096)
def _text_of(cost_class: CostClass) -> str:
    return dumps(cost_class, ensure_ascii=False, separators=(",", ":"))


class _Lengths:
    """Output lengths that finished tasks had: a quantile of the last ones and their mean."""

    def __init__(self, keep: int) -> None:
        self._last: deque[int] = deque(maxlen=keep)
        self.count = 0
        self.quantile = 0.0
        self.mean = 0.0

    def observe(self, tokens: int) -> None:
        self.count += 1
        self._last.append(tokens)
        ordered = sorted(self._last)
        self.quantile = float(ordered[ceil(OUTPUT_QUANTILE * len(ordered)) - 1])
        self.mean = sum(ordered) / len(ordered)


@dataclass(slots=True)
class ModelCost:
    """The curves of one model; seconds. Priors are those of a small model on two CPU cores.

    A batch is at most ``max_batch`` (what the engine holds) and ``threads_max``, and within the
    knee of ``tpot_slo_seconds`` where there is an objective: a pod never runs more.
    """

    max_batch: int = 32
    threads_max: int | None = None
    tpot_slo_seconds: float | None = None
    step: Curve = field(default_factory=lambda: Curve(0.03, 0.002))
    prefill: Curve = field(default_factory=lambda: Curve(0.02, 0.001))
    own: Curve | None = None
    """Of steps as they would be if no other process held the CPUs; None: as ``step``."""
    _fresh: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=FRESH_STEPS))
    _batch: int = 0
    _per_token: float = 0.0

    def observe(
        self,
        decode_batch: int,
        prefill_tokens: int,
        seconds: float,
        own_seconds: float | None = None,
    ) -> None:
        """Take in one step. Prefill is what it adds to a step that decodes.

        Without one that decodes it adds to the smallest; an engine that only embeds has none.
        ``own_seconds``: what it would have taken, had no other process held the CPUs.
        """
        self._batch = 0
        if not prefill_tokens:
            self._observe_own(decode_batch, seconds if own_seconds is None else own_seconds)
            self.step.observe(decode_batch, seconds)
            return
        known = decode_batch or self.step.measured()
        decode = self.step.seconds(max(1, decode_batch)) if known else 0.0
        self.prefill.observe(prefill_tokens, max(seconds - decode, LEAST_SHARE * seconds))

    def _observe_own(self, batch: int, seconds: float) -> None:
        if batch < 1 or not seconds > 0:
            return
        if self.own is None:
            self.own = deepcopy(self.step)  # it starts from the same profile
        self.own.observe(batch, seconds)
        self._fresh.append((batch, seconds))

    def resize(self, max_batch: int) -> None:
        """Say how many sequences the engine can hold."""
        self.max_batch, self._batch = max(1, max_batch), 0

    def efficient_batch(self) -> int:
        """The smallest batch with 90 % of the tokens per second of the best that may run."""
        self._settle()
        return self._batch

    def seconds_per_token(self) -> float:
        """One output token's share of a step at the efficient batch."""
        self._settle()
        return self._per_token

    def knee(self, tpot_slo_seconds: float) -> int:
        """The largest batch whose step takes at most 0.4 of the objective, at least 1."""
        fits = [b for b in range(1, self.max_batch + 1) if self._fits(b, tpot_slo_seconds)]
        return fits[-1] if fits else 1

    def _fits(self, batch: int, tpot_slo_seconds: float) -> bool:
        return self._own_seconds(batch) <= KNEE_SHARE_OF_SLO * tpot_slo_seconds

    def _own_seconds(self, batch: int) -> float:
        """Of a step of this batch, whatever the curve holds of batches that it ran long ago.

        A step grows at most in proportion to its batch, so the last steps bound all others.
        """
        curve = self.step if self.own is None else self.own
        known = curve.seconds(batch)
        if len(self._fresh) < FRESH_STEPS:
            return known
        return min(known, median(s * max(1.0, batch / ran) for ran, s in self._fresh))

    def _settle(self) -> None:
        if self._batch:
            return
        # The curve is linear between grid points, so those are enough and a step costs little.
        most = min(self.max_batch, self.threads_max or self.max_batch)
        sizes = [b for b in GRID if b < most] + [most]
        slo = self.tpot_slo_seconds
        if slo is not None:
            sizes = [b for b in sizes if self._fits(b, slo)] or [1]
        rates = [b / self.step.seconds(b) for b in sizes]
        enough = EFFICIENT_SHARE * max(rates)
        self._batch = next(b for b, rate in zip(sizes, rates, strict=True) if rate >= enough)
        self._per_token = self.step.seconds(self._batch) / self._batch


class CostModel:
    """Prices tasks. Its state is bounded by kinds x models x buckets.

    ``threads_max`` and ``tpot_slo_seconds`` bound the batch at which a generation is priced.
    """

    def __init__(
        self, *, threads_max: int | None = None, tpot_slo_seconds: float | None = None
    ) -> None:
        self._threads_max, self._tpot_slo_seconds = threads_max, tpot_slo_seconds
        self._models: dict[str | None, ModelCost] = {}
        self._lengths: dict[CostClass | tuple[str, str | None], _Lengths] = {}
        self._seconds: dict[CostClass | tuple[str, str | None], RobustMean] = {}
        self._per_letter: dict[str | None, RobustMean] = {}
        self._reuse = Reuse(keep=64, enough=ENOUGH)
        # T by class until the next observation: a queue asks for all of its classes at each take.
        self._loads: dict[CostClass, float] = {}

    def model(self, name: str | None) -> ModelCost:
        """The curves of a model, to read or to change."""
        self._loads.clear()
        return self._curves(name)

    def _curves(self, name: str | None) -> ModelCost:
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = ModelCost(
                threads_max=self._threads_max, tpot_slo_seconds=self._tpot_slo_seconds
            )
        return found

    def load_profile(self, profile: CalibrationProfile) -> None:
        """Start a model's curves from its calibration."""
        curves = self.model(profile.model)
        curves.step.load(profile.step_seconds)
        curves.prefill.load(profile.prefill_added_seconds())

    def step_seconds(self, model: str, batch: int) -> float:
        """What a step over so many sequences takes now."""
        return self._curves(model).step.seconds(max(1, batch))

    def expected_tokens(self, of: CostClass) -> float:
        """The output length that a generation of this class probably has."""
        return self._length(of, mean=False)

    def measured(self, model: str) -> tuple[dict[int, float], dict[int, float]]:
        """A model's measured step seconds by batch and prefill seconds by tokens."""
        curves = self._curves(model)
        return curves.step.measured(), curves.prefill.measured()

    def classify(self, request: TaskRequest) -> CostClass:
        """The class a request is priced in."""
        payload = request.payload
        if isinstance(payload, Generate):
            return CostClass(
                request.kind,
                request.model,
                _half_octave(len(payload.prompt)),
                _octave(payload.max_tokens),
                payload.ignore_eos,
            )
        if isinstance(payload, Embed):
            return CostClass(request.kind, request.model, _half_octave(len(payload.tokens)))
        if isinstance(payload, Evaluate | Transcribe):
            return CostClass(request.kind, request.model, _half_octave(payload.size))
        if isinstance(payload, Forward):
            size = _half_octave(self.prompt_tokens(request.model, payload))
            if payload.route in WHOLE_ROUTES:
                return CostClass(request.kind, request.model, size)
            most = payload.max_tokens or FORWARD_PRIOR_TOKENS
            return CostClass(request.kind, request.model, size, _octave(most))
        return CostClass(request.kind, request.model, _octave(_json_size(payload.arguments)))

    def load(self, of: CostClass) -> float:
        """T in thread-seconds, with the output length at its quantile."""
        known = self._loads.get(of)
        if known is None:
            known = self._loads[of] = self._load(of)
        return known

    def _load(self, of: CostClass) -> float:
        if of.output:
            return self._generation(of, 2 ** (of.size / 2), self._length(of, mean=False))
        return self._mean_seconds(of)

    def work(self, request: TaskRequest, of: CostClass, threads: int) -> float:
        """Offered work in pod-seconds, with the mean output length.

        ``threads``: N of the lane; a call holds one of them for its seconds.
        """
        payload = request.payload
        if isinstance(payload, Generate):
            tokens = min(self._length(of, mean=True), float(payload.max_tokens))
            return self._generation(of, len(payload.prompt), tokens)
        if isinstance(payload, Forward) and of.output:
            most = float(payload.max_tokens or FORWARD_PRIOR_TOKENS)
            tokens = min(self._length(of, mean=True), most)
            return self._generation(of, self.prompt_tokens(request.model, payload), tokens)
        if isinstance(payload, Embed | Evaluate | Transcribe | Forward):
            return self._mean_seconds(of)
        return self._mean_seconds(of) / max(1, threads)

    def prompt_tokens(self, model: str | None, payload: Forward) -> int:
        """As counted, else ``letters x ratio``: the ratio is learned from what servers counted."""
        if payload.prompt_tokens is not None:
            return payload.prompt_tokens
        ratio = self._per_letter.get(model)
        return ceil(payload.letters * (TOKENS_PER_LETTER if ratio is None else ratio.value))

    def observe_prompt(self, model: str | None, payload: Forward, tokens: int) -> None:
        """Learn from the usage that a server told for a request."""
        if payload.letters >= LETTERS_ENOUGH and tokens > 0:
            ratio = self._per_letter.setdefault(model, RobustMean())
            ratio.observe(tokens / payload.letters)

    def observe_step(
        self,
        model: str,
        decode_batch: int,
        prefill_tokens: int,
        seconds: float,
        own_seconds: float | None = None,
    ) -> None:
        """Refine a model's curves by one step of its engine."""
        self.model(model).observe(decode_batch, prefill_tokens, seconds, own_seconds)

    def observe_generated(
        self, of: CostClass, output_tokens: int, prompt_tokens: int = 0, reused: int = 0
    ) -> None:
        """Learn from a generation that finished by itself.

        ``reused``: of its prompt tokens, how many it had not to compute.
        """
        self._loads.clear()
        for of_prompts in (of, (of.kind, of.model)) if prompt_tokens else ():
            self._reuse.observe(of_prompts, prompt_tokens, reused)
        for key, keep in ((of, 64), ((of.kind, of.model), 256)):
            if key not in self._lengths:
                self._lengths[key] = _Lengths(keep)
            self._lengths[key].observe(output_tokens)

    def observe_seconds(self, of: CostClass, seconds: float) -> None:
        """Learn from another kind of task that finished: the seconds it held its thread."""
        self._loads.clear()
        for key in (of, (of.kind, of.model)):
            if key not in self._seconds:
                self._seconds[key] = RobustMean()
            self._seconds[key].observe(max(seconds, 1e-6))

    def _generation(self, of: CostClass, prompt_tokens: float, output_tokens: float) -> float:
        curves = self._curves(of.model)
        computed = max(1.0, prompt_tokens * (1 - self._reuse.share(of, (of.kind, of.model))))
        return curves.prefill.seconds(computed) + output_tokens * curves.seconds_per_token()

    def _length(self, of: CostClass, *, mean: bool) -> float:
        most = float(2**of.output)
        if of.fixed:
            return most
        for key in (of, (of.kind, of.model)):
            seen = self._lengths.get(key)
            if seen is not None and seen.count >= ENOUGH:
                return min(seen.mean if mean else seen.quantile, most)
        return min(float(OUTPUT_PRIOR_TOKENS), most)

    def _mean_seconds(self, of: CostClass) -> float:
        seen = self._seconds.get(of) or self._seconds.get((of.kind, of.model))
        if seen is not None:
            return seen.value
        if of.kind in READS:
            return self._curves(of.model).prefill.seconds(2 ** (of.size / 2))
        return CALL_PRIOR_SECONDS


def _octave(n: int) -> int:
    """The power of two at or above ``n``, at least 1 so that 0 can mean "none"."""
    return max(1, ceil(log2(max(n, 1))))


def _half_octave(n: int) -> int:
    return round(2 * log2(max(n, 1)))


def _json_size(value: object, depth: int = 0) -> int:
    """About how many characters ``value`` has as JSON; looks at most 4 levels deep."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict) and depth < 4:
        return sum(len(k) + _json_size(v, depth + 1) for k, v in value.items())
    if isinstance(value, list) and depth < 4:
        return sum(_json_size(v, depth + 1) for v in value)
    return 8
