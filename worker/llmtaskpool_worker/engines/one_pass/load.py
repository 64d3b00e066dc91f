"""From a checked folder to the one-pass loop of a task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from llmtaskpool_worker.engines.admission import (
    dtype_of,
    on_cpu,
    refuse_file_that_never_fits,
    refuse_what_never_fits,
)
from llmtaskpool_worker.engines.one_pass.encoder import Bounds, Encoder, Reads
from llmtaskpool_worker.engines.one_pass.images import load_images
from llmtaskpool_worker.engines.one_pass.linear_head import has_head, load_linear_head
from llmtaskpool_worker.engines.one_pass.loop import OnePassLoop
from llmtaskpool_worker.engines.one_pass.planning import planned
from llmtaskpool_worker.engines.one_pass.tables import load_table
from llmtaskpool_worker.engines.one_pass.text_heads import (
    AnswerHead,
    ClassifyHead,
    EmbedHead,
    ScoreHead,
    TagHead,
    TextHead,
)
from llmtaskpool_worker.engines.onnx_files import onnx_file
from llmtaskpool_worker.engines.weights import (
    ModelRefused,
    check_numbers,
    check_task,
    load_weights,
    of_images,
)

_AUTO = {
    "embed": AutoModel,
    "rerank": AutoModelForSequenceClassification,
    "classify": AutoModelForSequenceClassification,
    "tag": AutoModelForTokenClassification,
    "answer": AutoModelForQuestionAnswering,
}
_COMPARED: dict[str, Callable[[Any], Tensor]] = {
    "embed": lambda out: out.last_hidden_state,
    "rerank": lambda out: out.logits,
    "classify": lambda out: out.logits,
    "tag": lambda out: out.logits,
    "answer": lambda out: out.start_logits,
}
"""What of a model's output tells whether it can be run packed."""


def load_one_pass(
    folder: Path,
    task: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int = 8,
    options: dict[str, Any] | None = None,
) -> OnePassLoop:
    """The loop over the model in ``folder`` with the head of ``task``.

    Raises:
        ModelRefused: the model is for another task, its pooling or head is one that isn't
            implemented here, or its weights aren't whole.
    """
    options = options or {}
    if task == "tensor":
        return load_table(folder, device=device, dtype=dtype, threads=threads, options=options)
    onnx = onnx_file(folder)
    if onnx is not None:
        on_cpu(device, dtype)
        device = "cpu"
        if not (folder / "config.json").is_file():
            raise ModelRefused(
                f"config.json is missing beside {onnx.name}, which task={task} needs, with a "
                "tokenizer.json or preprocessor_config.json: copy them there, or add task=tensor "
                "and send tensors"
            )
        refuse_file_that_never_fits(onnx, options)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    linear = has_head(folder, task)
    of = "embed" if linear else task
    check_task(config, folder, of)
    if task == "detect" or (task == "classify" and of_images(config)):
        return load_images(
            folder, config, task, device=device, dtype=dtype, threads=threads, options=options
        )
    if task == "rerank" and int(config.num_labels) != 1:
        raise ModelRefused(
            f"it tells {config.num_labels} labels apart, and task=rerank needs one number: "
            "add task=classify, or name a cross-encoder"
        )
    encoder: Reads
    if onnx is not None:
        from llmtaskpool_worker.engines.one_pass.onnx_heads import load_texts

        with torch.device("meta"):  # without weights: only where its positions begin is asked
            bounds = _bounds(folder, config, _AUTO[of].from_config(config), options)
        encoder = load_texts(onnx, config, of, bounds)
    else:
        used = dtype_of(dtype, "float32")
        refuse_what_never_fits(folder, device, used, options)
        model = load_weights(
            _AUTO[of],
            folder,
            config,
            unused=("pooler.",) if of == "embed" else (),  # of the first token, for other tasks
            dtype=getattr(torch, used),
        )
        model.to(device).eval().requires_grad_(requires_grad=False)
        check_numbers(model)
        bounds = _bounds(folder, config, model, options)
        encoder = Encoder(model, bounds, first=_COMPARED[of])
    head: TextHead
    if linear:
        size = int(config.hidden_size)
        head = load_linear_head(folder, encoder, pooling=_pooling(folder), dimensions=size)
    else:
        head = _head(task, encoder, config, folder)
    return planned(head, encoder.device, threads=threads, options=options)


def _head(task: str, encoder: Reads, config: Any, folder: Path) -> TextHead:
    labels = [str(config.id2label[place]) for place in range(int(config.num_labels))]
    match task:
        case "embed":
            dimensions = int(config.hidden_size)
            return EmbedHead(encoder, pooling=_pooling(folder), dimensions=dimensions)
        case "rerank":
            return ScoreHead(encoder, activation=_activation(config))
        case "classify":
            several = config.problem_type == "multi_label_classification" or len(labels) == 1
            return ClassifyHead(encoder, labels=labels, several=several)
        case "tag":
            return TagHead(encoder, labels=labels)
        case _:
            return AnswerHead(encoder)


def _bounds(folder: Path, config: Any, model: nn.Module, options: dict[str, Any]) -> Bounds:
    """What a text may have: the least of what the model, its files and the options say."""
    limits = [int(config.max_position_embeddings) - _first_position(model)]
    limits += _numbers(folder / "sentence_bert_config.json", "max_seq_length")
    if "context_length" in options:
        limits.append(int(options["context_length"]))
    return Bounds(context_length=min(limits), vocab_size=int(config.vocab_size))


def _first_position(model: nn.Module) -> int:
    """Where positions begin: RoBERTa's families count from behind the padding token's id."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def _activation(config: Any) -> str:
    """What a cross-encoder's number goes through, as sentence-transformers writes it down."""
    told = getattr(config, "sentence_transformers", None) or {}
    name = str(
        told.get("activation_fn")
        or getattr(config, "sbert_ce_default_activation_function", "")
        or ""
    )
    match name.rpartition(".")[2]:
        case "" | "Sigmoid":
            return "sigmoid"
        case "Identity":
            return "identity"
    raise ModelRefused(
        f"its score goes through {name}, and Sigmoid and Identity are known here: name another "
        "model"
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
