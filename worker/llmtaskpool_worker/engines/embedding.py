"""Embeddings by a BERT-like encoder: texts of like length share a forward pass."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from llmtaskpool_worker.engines.loop import LoopMessage
from llmtaskpool_worker.engines.protocol import (
    Admit,
    AdmitEmbedding,
    Cancel,
    Finished,
    FromEngine,
    Ready,
    RequestFailed,
    SetThreads,
    Step,
    Trim,
    Vector,
)
from llmtaskpool_worker.engines.resident import give_back
from llmtaskpool_worker.engines.weights import (
    ModelRefused,
    check_numbers,
    check_task,
    load_weights,
)

STEP_TOKENS = 4096
"""At most so many tokens, padding included, in one forward pass."""


class EmbeddingLoop:
    """EngineLoop of one encoder. ``pooling`` is "mean" or "cls"; vectors have length 1."""

    def __init__(
        self,
        model: nn.Module,
        *,
        pooling: str,
        context_length: int,
        vocab_size: int,
        pad_token_id: int,
        threads: int,
        max_threads: int = 256,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.pooling = pooling
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.pad_token_id = pad_token_id
        self.threads = threads
        self.max_threads = max_threads
        self.clock = clock
        self.steps = 0
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.dimensions = int(model.config.hidden_size)  # type: ignore[union-attr,arg-type]  # every encoder has one
        self._waiting: dict[int, AdmitEmbedding] = {}
        self._cancelled: list[Finished] = []

    def ready(self) -> Ready:
        """What was loaded."""
        return Ready(
            context_length=self.context_length,
            vocab_size=self.vocab_size,
            eos_token_ids=[],
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            max_threads=self.max_threads,
            embedding_dimensions=self.dimensions,
        )

    def accept(self, message: LoopMessage) -> list[FromEngine]:
        """Take a message in; takes effect with the next step."""
        match message:
            case AdmitEmbedding(id=request_id, tokens=tokens):
                if fault := self._fault(tokens):
                    return [RequestFailed(request_id, *fault)]
                self._waiting[request_id] = message
            case Admit(id=request_id):
                return [
                    RequestFailed(request_id, "wrong_model", "this model embeds; it can't generate")
                ]
            case Cancel(id=request_id):
                if self._waiting.pop(request_id, None) is not None:
                    self._cancelled.append(Finished(request_id, "cancelled"))
            case SetThreads(n=n):
                self.threads = max(1, min(n, self.max_threads))
            case Trim():
                give_back()
        return []

    def busy(self) -> bool:
        """Whether texts wait or a cancel has to be reported."""
        return bool(self._waiting or self._cancelled)

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` at each layer of each step from now on."""
        for layers in self.model.modules():
            if isinstance(layers, nn.ModuleList):
                for layer in layers:
                    layer.register_forward_pre_hook(lambda *_: beat())

    @torch.inference_mode()
    def step(self) -> list[FromEngine]:
        """Schedule, run, postprocess: one forward pass."""
        began = self.clock()
        batch = self._schedule()
        vectors = self._run(batch) if batch else []
        finished, self._cancelled = self._cancelled, []
        self.steps += 1
        step = Step(
            number=self.steps,
            seconds=self.clock() - began,
            decode_batch=0,
            prefill_tokens=sum(len(request.tokens) for request in batch),
            tokens=[],
            finished=finished,
        )
        return [step, *vectors]

    def _schedule(self) -> list[AdmitEmbedding]:
        """The oldest text and those that waste the least padding beside it."""
        if not self._waiting:
            return []
        window = list(self._waiting.values())[: 4 * self.threads]
        oldest = window[0]
        window.sort(key=lambda request: abs(len(request.tokens) - len(oldest.tokens)))
        batch: list[AdmitEmbedding] = []
        longest = 0
        for request in window[: self.threads]:
            longest = max(longest, len(request.tokens))
            if batch and longest * (len(batch) + 1) > STEP_TOKENS:
                break
            batch.append(request)
        for request in batch:
            del self._waiting[request.id]
        return batch

    def _run(self, batch: list[AdmitEmbedding]) -> list[FromEngine]:
        longest = max(len(request.tokens) for request in batch)
        rows = [r.tokens + [self.pad_token_id] * (longest - len(r.tokens)) for r in batch]
        mask = [[1] * len(r.tokens) + [0] * (longest - len(r.tokens)) for r in batch]
        ids = torch.tensor(rows, device=self.device)
        attended = torch.tensor(mask, device=self.device)
        hidden = self.model(input_ids=ids, attention_mask=attended).last_hidden_state
        vectors = self._pool(hidden.float(), attended).cpu()
        finite = torch.isfinite(vectors).all(dim=-1).tolist()
        return [
            Vector(request.id, vectors[row].numpy().astype("<f4").tobytes(), len(request.tokens))
            if finite[row]
            else RequestFailed(request.id, "not_finite", "the model's output is not a number")
            for row, request in enumerate(batch)
        ]

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(texts, tokens, dims) to (texts, dims) of length 1."""
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            weights = mask.unsqueeze(-1).float()
            pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(pooled, dim=-1)

    def _fault(self, tokens: list[int]) -> tuple[str, str] | None:
        if not tokens:
            return "empty_prompt", "the text has no tokens"
        if len(tokens) > self.context_length:
            return "context_length_exceeded", (
                f"the text has {len(tokens)} tokens and the model takes {self.context_length}; "
                "split the text"
            )
        if not 0 <= min(tokens) <= max(tokens) < self.vocab_size:
            return "token_out_of_range", f"a token id is not in 0 to {self.vocab_size - 1}"
        return None


def load_embedding(
    folder: Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int = 8,
    options: dict[str, Any] | None = None,
) -> EmbeddingLoop:
    """The loop over the encoder in ``folder``, pooled as its sentence-transformers files say.

    Raises:
        ModelRefused: the pooling is one that isn't implemented here, the model generates, or
            its weights aren't whole.
    """
    options = options or {}
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_task(config, folder, "embed")
    model = load_weights(
        AutoModel,
        folder,
        config,
        unused=("pooler.",),  # of the first token, for other tasks
        dtype=getattr(torch, dtype or "float32"),
    )
    model.to(device).eval().requires_grad_(requires_grad=False)
    check_numbers(model)
    give_back()
    limits = [int(config.max_position_embeddings)]
    limits += _numbers(folder / "sentence_bert_config.json", "max_seq_length")
    return EmbeddingLoop(
        model,
        pooling=_pooling(folder),
        context_length=min(limits),
        vocab_size=int(config.vocab_size),
        pad_token_id=int(config.pad_token_id or 0),
        threads=threads,
        max_threads=int(options.get("max_threads", 256)),
    )


def _pooling(folder: Path) -> str:
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    config = json.loads(path.read_bytes())
    chosen = [name for name, on in config.items() if name.startswith("pooling_mode_") and on]
    match chosen:
        case ["pooling_mode_mean_tokens"]:
            return "mean"
        case ["pooling_mode_cls_token"]:
            return "cls"
    raise ModelRefused(f"this model can't be served: it pools by {chosen}, not by mean or cls")


def _numbers(path: Path, key: str) -> list[int]:
    if not path.is_file():
        return []
    value = json.loads(path.read_bytes()).get(key)
    return [value] if isinstance(value, int) else []
