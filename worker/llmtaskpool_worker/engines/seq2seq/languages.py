"""Which languages a model translates, by what its folder says. Pure but for reading files.

What comes of it is told to the API process (Ready.about), which makes token ids of texts:
``sources`` and ``targets``, the codes that are taken ([] for any: it isn't known);
``source_tokens`` and ``target_tokens``, the token that stands for each; ``begins``, the words that
a text begins with ({"en-de": "translate English to German: "}); ``marks``, whether the target is a
token before the text (Marian's >>deu<<) and not the answer's first (NLLB's deu_Latn).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}|[a-z]{2}_[A-Z]{2}")
"""Tokens of languages: NLLB's eng_Latn, mBART's en_XX."""
_MARK = re.compile(r">>([A-Za-z_]{2,16})<<")
_PAIR = re.compile(r"translation_([a-z]{2,3})_to_([a-z]{2,3})")


def languages_of(folder: Path, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """What Ready.about tells of a model that translates."""
    told = _json(folder / "tokenizer_config.json")
    source = options.get("source_language") or told.get("source_lang") or told.get("src_lang")
    target = options.get("target_language") or told.get("target_lang") or told.get("tgt_lang")
    about: dict[str, Any] = {"sources": _listed(source), "targets": _listed(target)}
    pairs = _prompts(config)
    if pairs:
        about["begins"] = pairs
        about["sources"] = sorted({pair.split("-")[0] for pair in pairs})
        about["targets"] = sorted({pair.split("-")[1] for pair in pairs})
        return about
    tokens = _tokens(folder)
    codes = {token: place for token, place in tokens.items() if _CODE.fullmatch(token)}
    if codes:
        about |= {"source_tokens": codes, "target_tokens": codes}
        about["sources"] = about["targets"] = sorted(codes)
        return about
    marks = {m[1]: place for token, place in tokens.items() if (m := _MARK.fullmatch(token))}
    if marks:
        about |= {"target_tokens": marks, "targets": sorted(marks), "marks": True}
    return about


def begins_of(config: Any, kind: str) -> str:
    """The words that a text begins with for a kind of task, as T5 was taught: "summarize: "."""
    params = getattr(config, "task_specific_params", None) or {}
    prefix = (params.get(kind) or {}).get("prefix")
    return prefix if isinstance(prefix, str) else ""


def _prompts(config: Any) -> dict[str, str]:
    params = getattr(config, "task_specific_params", None) or {}
    return {
        f"{m[1]}-{m[2]}": begins_of(config, name)
        for name in params
        if (m := _PAIR.fullmatch(name)) is not None
    }


def _tokens(folder: Path) -> dict[str, int]:
    """Added tokens of a tokenizer.json, or the vocabulary of Marian."""
    spec = _json(folder / "tokenizer.json")
    if spec:
        return {str(one["content"]): int(one["id"]) for one in spec.get("added_tokens") or ()}
    return _json(folder / "vocab.json")


def _listed(code: object) -> list[str]:
    return [code] if isinstance(code, str) and code else []


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_bytes()) if path.is_file() else {}
    return content if isinstance(content, dict) else {}
