"""From a checked body to the task that runs a model once over it.

Rows are made here, in the API process: an engine sees token ids and no text.
"""

from __future__ import annotations

from array import array
from base64 import b64decode
from collections.abc import Sequence
from itertools import chain
from typing import Any

from llmtaskpool_worker.engines.image_files import BadImage, opened
from llmtaskpool_worker.http_api.catalog import Catalog, Model, off_loop
from llmtaskpool_worker.http_api.errors import invalid
from llmtaskpool_worker.http_api.one_pass_schema import (
    AnswerRequest,
    ClassifyRequest,
    DetectRequest,
    OnePassFields,
    RerankRequest,
    ScoreRequest,
    TagRequest,
)
from llmtaskpool_worker.http_api.openai_schema import CommonFields
from llmtaskpool_worker.kinds.registry import KIND_TASKS
from llmtaskpool_worker.scheduling.task import EncodedRow, Evaluate, Row, Spelled

STRIDE = 128
"""Tokens that windows of a long text share, as in transformers' pipeline."""

Text = str | tuple[str, str]


async def evaluation(kind: str, body: CommonFields, catalog: Catalog) -> tuple[Model, Evaluate]:
    """The model that a body names, and what it is to do. Raises ApiError naming the field."""
    model = catalog.get(body.model, *KIND_TASKS[kind])
    match body:
        case RerankRequest():
            pairs = [(body.query, text) for text in body.texts()]
            fields = [f"documents[{place}]" for place in range(len(pairs))]
            shown: dict[str, Any] = {"top_n": body.top_n}
            return model, await _scored(model, body, pairs, fields, shown, body.max_tokens_per_doc)
        case ScoreRequest():
            pairs = body.pairs()
            name = "documents" if body.documents is not None else "text_2"
            fields = [f"{name}[{place}]" for place in range(len(pairs))]
            return model, await _scored(model, body, pairs, fields, {}, None)
        case ClassifyRequest():
            options: dict[str, Any] = {"use_activation": body.use_activation}
            told = {"top_k": body.top_k}
            if model.about.get("modality") == "image":
                images = await pictures(model, body.image, body.input)
                return model, Evaluate((), options, told, images=images)
            if body.input is None:
                raise invalid(
                    "input",
                    f"input is missing: {model.name} classifies texts. Send a text, or a list of "
                    "them.",
                    code="invalid_missing",
                )
            rows = await _texts(model, body, body.input)
            return model, Evaluate(_packed(rows), options, told)
        case DetectRequest():
            images = await pictures(model, body.image, None)
            return model, Evaluate((), {"threshold": body.threshold}, images=images)
        case TagRequest():
            rows = await _texts(model, body, body.input, spans=True)
            spelled = _spelled(rows, _listed(body.input))
            return model, Evaluate(_packed(rows), {}, {"aggregation": body.aggregation}, spelled)
        case AnswerRequest():
            return model, await _answers(model, body)
    raise invalid("kind", f"kind {kind} takes another body: see /openapi.json.")


async def pictures(model: Model, given: str | list[str] | None, text: object) -> tuple[bytes, ...]:
    """Pictures in base64 as files, whose headers were read. Raises ApiError naming ``image``."""
    if not model.about:
        raise model.starting()
    if given is None or text is not None:
        raise invalid(
            "image",
            f"{model.name} takes pictures: send image, a picture in base64 or a list of them, and "
            "no input.",
        )
    listed = _listed(given)
    names = ["image"] if isinstance(given, str) else [f"image[{n}]" for n in range(len(listed))]
    letters, most = sum(map(len, listed)), model.about.get("most_pixels")
    return await off_loop(
        letters,
        lambda: tuple(_picture(one, name, most) for one, name in zip(listed, names, strict=True)),
    )


def _picture(given: str, name: str, most_pixels: int | None) -> bytes:
    """A file of a picture from base64, or from a data: URL of it.

    ``most_pixels``: where memory holds fewer than are taken elsewhere.
    """
    if given.startswith("data:"):
        given = given.partition(",")[2]
    try:
        packed = b64decode(given, validate=True)
    except ValueError:
        raise invalid(name, f"{name} is not base64: send the file's bytes in base64.") from None
    try:
        with opened(packed) as picture:
            pixels = picture.width * picture.height
    except BadImage as error:
        raise invalid(name, f"{name} {error}.", code="bad_image") from None
    if most_pixels is not None and pixels > most_pixels:
        raise invalid(
            name,
            f"{name} has {pixels} pixels, and the memory of this model holds {most_pixels}: send "
            "it smaller.",
            code="too_large",
        )
    return packed


async def _scored(
    model: Model,
    body: RerankRequest | ScoreRequest,
    pairs: Sequence[tuple[str, str]],
    fields: Sequence[str],
    shown: dict[str, Any],
    per_document: int | None,
) -> Evaluate:
    """Pairs for a cross-encoder; for a model that embeds, each text once and who goes with whom."""
    options: dict[str, Any] = {"use_activation": body.use_activation}
    if model.task != "embed":
        rows = await encoded(
            model, pairs, fields, truncate=body.truncate_prompt_tokens, second_at_most=per_document
        )
        return Evaluate(_packed(rows), options, shown)
    texts = list(dict.fromkeys(chain.from_iterable(pairs)))
    places = {text: place for place, text in enumerate(texts)}
    named = {two: field for (_, two), field in zip(pairs, fields, strict=True)}
    rows = await encoded(
        model,
        texts,
        [named.get(text, "query") for text in texts],
        truncate=min((n for n in (body.truncate_prompt_tokens, per_document) if n), default=None),
    )
    options["pairs"] = [[places[one], places[two]] for one, two in pairs]
    return Evaluate(_packed(rows), options, shown)


async def _texts(
    model: Model, body: OnePassFields, given: str | list[str], *, spans: bool = False
) -> list[EncodedRow]:
    texts = _listed(given)
    fields = ["input"] if isinstance(given, str) else [f"input[{n}]" for n in range(len(texts))]
    return await encoded(model, texts, fields, truncate=body.truncate_prompt_tokens, spans=spans)


async def _answers(model: Model, body: AnswerRequest) -> Evaluate:
    """A row for each question, or for each window of a text that is too long for one."""
    pairs = body.pairs()
    rows: list[EncodedRow] = []
    groups: list[int] = []
    texts: list[str] = []
    whole = await encoded(model, pairs, ["context"] * len(pairs), spans=True, any_length=True)
    for place, row in enumerate(whole):
        windows = _windows(row, model.context_length or len(row.tokens), model)
        rows += windows
        groups += [place] * len(windows)
        texts += [pairs[place][1]] * len(windows)
    if len(rows) > 4 * len(pairs) + 1000:
        raise invalid("context", "context is too long: send less of it.", code="too_many")
    options = {"top_k": body.top_k, "max_answer_tokens": body.max_answer_tokens}
    shown = {"top_k": body.top_k}
    return Evaluate(_packed(rows), options, shown, _spelled(rows, texts), tuple(groups))


def _windows(row: EncodedRow, most: int, model: Model) -> list[EncodedRow]:
    """``row`` in rows of at most ``most`` tokens: the question with a part of the text each."""
    if len(row.tokens) <= most:
        return [row]
    before, after = row.tokens[: row.second], row.tokens[row.end :]
    room = most - len(before) - len(after)
    if room < 2:
        raise model.over("question", f"your question resulted in {row.second} tokens")
    step = room - min(STRIDE, room // 2)
    found = []
    for start in range(row.second, row.end, step):
        end = min(start + room, row.end)
        tokens = [*before, *row.tokens[start:end], *after]
        spans = [*row.spans[: row.second], *row.spans[start:end], *row.spans[row.end :]]
        found.append(EncodedRow(tokens, row.second, row.second + end - start, spans))
        if end == row.end:
            break
    return found


async def encoded(
    model: Model,
    texts: Sequence[Text],
    fields: Sequence[str],
    *,
    truncate: int | None = None,
    second_at_most: int | None = None,
    spans: bool = False,
    any_length: bool = False,
) -> list[EncodedRow]:
    """Rows of texts or pairs; ``fields`` are what they are called in errors.

    ``truncate``: the most tokens of a row, -1 for the model's own most; ``second_at_most``: of a
    second text. ``any_length``: too long a row is the caller's to deal with.
    """
    codec = model.ready_codec()
    if truncate is None and not any_length:
        for text, field in zip(texts, fields, strict=True):
            model.may_fit(max(map(len, _parts(text))), field)
    letters = sum(len(part) for text in texts for part in _parts(text))
    rows = await off_loop(letters, lambda: codec.encode_rows(texts, spans=spans))
    most = model.context_length or max(len(row.tokens) for row in rows)
    if truncate is not None:
        most = most if truncate < 0 else min(most, truncate)
    around = len(codec.complete(()))
    checked = []
    for row, text, field in zip(rows, texts, fields, strict=True):
        if second_at_most is not None and row.end - row.second > second_at_most:
            row = _cut(row, row.end - row.second - second_at_most)
        if len(row.tokens) > most and truncate is not None:
            row = _cut(row, len(row.tokens) - most)
        if isinstance(text, str) and len(row.tokens) <= around:
            raise invalid(
                field, f"{field} is empty or blank: {model.name} has nothing to read. Send text."
            )
        if len(row.tokens) > most and not any_length:
            raise model.over(field, f"your {field} resulted in {len(row.tokens)} tokens")
        checked.append(row)
    return checked


def _cut(row: EncodedRow, count: int) -> EncodedRow:
    """``row`` without its last ``count`` tokens, those of the end of a text and no special ones."""
    kept = max(row.end - count, row.second)
    tokens = [*row.tokens[:kept], *row.tokens[row.end :]]
    return EncodedRow(tokens, row.second, kept, [*row.spans[:kept], *row.spans[row.end :]])


def _parts(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def _listed(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def _packed(rows: Sequence[EncodedRow]) -> tuple[Row, ...]:
    return tuple(Row(array("I", row.tokens).tobytes(), row.second, row.end) for row in rows)


def _spelled(rows: Sequence[EncodedRow], texts: Sequence[str]) -> tuple[Spelled, ...]:
    return tuple(
        Spelled(text, array("I", chain.from_iterable(row.spans)).tobytes())
        for row, text in zip(rows, texts, strict=True)
    )
