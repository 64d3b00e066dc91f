"""Whether weights are what they should be: every tensor in its place, and real numbers.

transformers fills what a file lacks with random numbers and warns; a server would answer noise
with 200. Everything here refuses instead, says what is wrong and what to do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmtaskpool_worker.engines.image_files import IMAGE_ARCHITECTURES, TIMM

SHOWN_NAMES = 3
_GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_MADE_FOR: Mapping[str, tuple[str, ...]] = {
    "rerank": ("ForSequenceClassification",),
    "classify": ("ForSequenceClassification", "ForImageClassification"),
    "tag": ("ForTokenClassification",),
    "answer": ("ForQuestionAnswering",),
    "detect": ("ForObjectDetection",),
    "translate": ("ForConditionalGeneration", "MTModel"),
    "summarize": ("ForConditionalGeneration",),
    "transcribe": ("WhisperForConditionalGeneration",),
}
"""By task, how the names of architectures end that have a head for it."""
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|position_ids|(attn|attention)\.(masked_)?bias)$")
"""Constants that older versions of transformers saved among the weights; models make them anew."""


class ModelRefused(Exception):
    """The model can't be served here; the message says why and what to do instead."""


def check_task(config: Any, folder: Path, task: str) -> None:
    """Refuse a model that was made for another task. Raises ModelRefused.

    A folder of sentence-transformers says how it pools (1_Pooling): that makes an embedder even
    of a decoder.
    """
    names = _architectures(config)
    pools = (folder / "1_Pooling" / "config.json").is_file()
    generates = any(name.endswith(_GENERATES) for name in names)
    if task in _MADE_FOR:
        _check_head(names, task)
    elif task == "embed" and generates and not pools:
        raise ModelRefused(
            f"it is a {names[0]}, which generates, and nothing says how it embeds: leave out "
            "task=embed, or name an embedding model (with 1_Pooling/config.json)"
        )
    elif task == "generate" and (pools or (names and not generates)):
        what = "a " + names[0] if names else "a model"
        for_tasks = [t for t, ends in _MADE_FOR.items() if names and names[0].endswith(ends)]
        does, instead = ("is for another task", for_tasks) if for_tasks else ("embeds", ["embed"])
        raise ModelRefused(
            f"it is {what} that {does} and does not generate: "
            f"add task={' or task='.join(instead)}, or name a model that generates "
            "(such as a LlamaForCausalLM)"
        )


def of_images(config: Any) -> bool:
    """Whether a model takes pictures, and no text."""
    return any(name.endswith(IMAGE_ARCHITECTURES) for name in _architectures(config))


def _architectures(config: Any) -> tuple[str, ...]:
    """Names that say what a model is for; models of timm, which have none, are classifiers."""
    names = tuple(getattr(config, "architectures", None) or ())
    of_timm = getattr(config, "model_type", None) == TIMM
    return names or (("TimmWrapperForImageClassification",) if of_timm else ())


def _check_head(names: tuple[str, ...], task: str) -> None:
    wanted = _MADE_FOR[task]
    if not any(name.endswith(wanted) for name in names):
        raise ModelRefused(
            f"it is {'a ' + names[0] if names else 'a model without architectures'}, and "
            f"task={task} needs one that was trained for it (a ...{wanted[0]}): name another model "
            "or another task"
        )


def load_weights(
    auto: Any, folder: Path, config: Any, *, unused: tuple[str, ...] = (), **options: Any
) -> Any:
    """``auto.from_pretrained`` of ``folder``, refused unless every tensor found its place.

    ``unused``: parts of the model whose weights may be missing, because nothing reads them.
    What is tied is not missing; heads for other tasks beside the model may be in the file.

    Raises:
        ModelRefused: tensors are missing, left over, or of another shape.
    """
    model, told = auto.from_pretrained(
        folder,
        config=config,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # told below, with names and shapes
        **options,
    )
    missing = [name for name in told["missing_keys"] if not name.startswith(unused)]
    if missing:
        raise ModelRefused(
            f"{len(missing)} of {len(model.state_dict())} tensors are missing in its files "
            f"({_some(missing)}): they are not all there or belong to another config.json; "
            "download the model again"
        )
    shapes = sorted(told["mismatched_keys"])
    if shapes:
        name, found, wanted = shapes[0]
        raise ModelRefused(
            f"{len(shapes)} tensors have another shape than config.json asks for ({name} is "
            f"{list(found)}, not {list(wanted)}): its files belong to different models; "
            "download the model again"
        )
    left = [name for name in told["unexpected_keys"] if _matters(name, model)]
    if left:
        raise ModelRefused(
            f"{len(left)} tensors in its files have no place in the model ({_some(left)}): "
            "config.json belongs to another model; download the model again"
        )
    return model


def check_numbers(model: nn.Module) -> None:
    """Refuse weights that no training leaves behind. Raises ModelRefused.

    One pass over the weights: a number that is none, or a linear layer of one value throughout
    (the zeros of a file that was never written to its end).
    """
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    named = [
        (name, value)
        for name, value in model.named_parameters()
        if value.is_floating_point() and value.element_size() > 1 and value.numel() > 1
    ]
    if not named:
        return
    ends = [torch.stack(torch.aminmax(value.detach())).double() for _, value in named]
    for (name, value), (least, most) in zip(named, torch.stack(ends).tolist(), strict=True):
        if not math.isfinite(least) or not math.isfinite(most):
            raise ModelRefused(
                f"{name} holds values that are no numbers: the file is spoilt; download it again"
            )
        if least == most and id(value) in linear:
            raise ModelRefused(
                f"{name} is {least:g} throughout: the file was not written to its end; "
                "download it again"
            )


def _matters(name: str, model: nn.Module) -> bool:
    """Whether a left-over tensor would change what the model computes.

    A head that stands beside the model (an unknown name at its root) doesn't, nor do constants, nor
    the pooler of a first token that no head of this model reads.
    """
    if _BUFFERS.search(name) or (".pooler." in name and not _pools(model, name)):
        return False
    prefix = getattr(model, "base_model_prefix", "")
    inside = name.removeprefix(f"{prefix}.") if not hasattr(model, prefix or "-") else name
    return hasattr(model, inside.split(".")[0])


def _pools(model: nn.Module, name: str) -> bool:
    """Whether the model has the pooler that a tensor is of."""
    before = name.partition(".pooler.")[0]
    try:
        return bool(model.get_submodule(f"{before}.pooler"))
    except AttributeError:  # there is none, or it was left out
        return False


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - SHOWN_NAMES
    return ", ".join(ordered[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
