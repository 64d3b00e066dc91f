"""From a checked body to the task of a model that reads a text once and writes another.

Shapes: LibreTranslate's /translate (docs/api.md). Token ids are made here, in the API process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from llmtaskpool_worker.disclosure import shown
from llmtaskpool_worker.http_api.catalog import Catalog, Model
from llmtaskpool_worker.http_api.counting import count_list
from llmtaskpool_worker.http_api.errors import ApiError, invalid
from llmtaskpool_worker.http_api.openai_schema import MAX_TOKENS_MAX, CommonFields, parse
from llmtaskpool_worker.scheduling.task import Generate
from llmtaskpool_worker.text.languages import matching, short_of

TEXTS_MAX = 256
AUTO = "auto"

_Text = Annotated[str, Field(strict=True, min_length=1)]
_Texts = Annotated[list[_Text], Field(min_length=1, max_length=TEXTS_MAX, fail_fast=True)]
_Code = Annotated[str, Field(strict=True, min_length=2, max_length=32)]


class WritingFields(CommonFields):
    """What both of these bodies may hold."""

    max_tokens: Annotated[int, Field(strict=True)] | None = Field(
        None, ge=1, le=MAX_TOKENS_MAX, description="a whole number of tokens from 1"
    )


class TranslateRequest(WritingFields):
    """The body of POST /translate."""

    q: _Text | _Texts = Field(description=f"a text, or a list of at most {TEXTS_MAX}")
    source: _Code = Field(AUTO, description="the code of the text's language, such as en")
    target: _Code = Field(description="the code of a language, such as de")
    format: Literal["text"] = Field("text", description="text, without tags")
    alternatives: Annotated[int, Field(strict=True)] = Field(
        0, ge=0, le=0, description="0: each text has one translation here"
    )

    def texts(self) -> list[str]:
        """All that is to be translated."""
        return [self.q] if isinstance(self.q, str) else self.q


class SummarizeRequest(WritingFields):
    """The input and the arguments of a task of kind summarize."""

    input: _Text = Field(description="a text")


def parse_translation(body: Mapping[str, Any], catalog: Catalog) -> TranslateRequest:
    """A body whose model may be left out: the first that has both languages. Raises ApiError."""
    given = {name: value for name, value in body.items() if name != "api_key"}
    count_list(given.get("q"), "q", TEXTS_MAX)
    if given.get("model") is None:
        given["model"] = _model_for(given.get("source", AUTO), given.get("target"), catalog)
    checked: TranslateRequest = parse(TranslateRequest, given)
    return checked


def _model_for(source: object, target: object, catalog: Catalog) -> str:
    models = [model for _, model in catalog.all() if model.task == "translate"]
    if not models:
        raise ApiError(
            404,
            "No model here translates: serve one with task=translate (docs/models.md).",
            param="model",
            code="model_not_found",
        )
    for model in models:
        if isinstance(source, str) and isinstance(target, str) and _both(model, source, target):
            return model.name
    return models[0].name  # which says what it has


def _both(model: Model, source: str, target: str) -> bool:
    sources = model.about.get("sources", ())
    known = sources[0] if source == AUTO and len(sources) == 1 else matching(source, sources)
    return known is not None and matching(target, targets_of(model, known)) is not None


def targets_of(model: Model, source: str) -> list[str]:
    """Into what a model translates a language of its own."""
    begins = model.about.get("begins")
    if begins is not None:
        return [pair.partition("-")[2] for pair in begins if pair.partition("-")[0] == source]
    return [target for target in model.about.get("targets", ()) if target != source]


async def translation(model: Model, body: TranslateRequest, text: str, field: str) -> Generate:
    """One text of a body. Raises ApiError naming the field at fault."""
    if not model.about:
        raise model.starting()
    about = model.about
    source, target = _languages(model, body)
    begins = about.get("begins")
    if begins is not None:
        pair = f"{source}-{target}"
        if pair not in begins:
            known = ", ".join(sorted(begins))
            raise invalid(
                "target", f"{model.name} does not translate {pair}: it was taught {known}."
            )
        text = begins[pair] + text
    tokens = list(await model.encode(text, field))
    prefix = list(about["prefix"])
    written = about.get("target_tokens")
    if (known_sources := about.get("source_tokens")) is not None:
        tokens = _told(tokens, known_sources, source)
    if written is not None and about.get("marks"):
        tokens.insert(0, written[target])
    elif written is not None:
        prefix.append(written[target])
    return _written(model, tokens, prefix, body.max_tokens)


async def summary(model: Model, body: SummarizeRequest) -> Generate:
    """A text to be told shorter. Raises ApiError naming the field at fault."""
    if not model.about:
        raise model.starting()
    text = model.about.get("begins", {}).get("", "") + body.input
    tokens = list(await model.encode(text, "input"))
    return _written(model, tokens, list(model.about["prefix"]), body.max_tokens)


def _written(model: Model, tokens: list[int], prefix: list[int], most: int | None) -> Generate:
    model.check_wanted("max_tokens", most)
    usual = int(model.about["max_tokens"])
    usual = min(usual, model.most_tokens or usual)
    return Generate(tuple(tokens), min(most or usual, usual), prefix=tuple(prefix))


def _told(tokens: list[int], known: Mapping[str, int], source: str) -> list[int]:
    """A text's tokens with that of its language, where the model has it: first, or last."""
    places = set(known.values())
    if tokens[-1] in places:
        return [*tokens[:-1], known[source]]
    rest = tokens[1:] if tokens[0] in places else tokens
    return [known[source], *rest]


def _languages(model: Model, body: TranslateRequest) -> tuple[str, str]:
    """The model's own codes of both. Raises ApiError."""
    sources, targets = model.about.get("sources", ()), model.about.get("targets", ())
    if not sources or not targets:
        raise invalid(
            "model",
            f"{model.name} does not say which languages it translates: give it the options "
            "source_language and target_language.",
            code="languages_unknown",
        )
    if body.source == AUTO and len(sources) == 1:
        source = sources[0]
    elif body.source == AUTO:
        raise invalid(
            "source",
            f"source is auto, and {model.name} translates from {len(sources)} languages and hears "
            "none by itself: send the text's language, such as en.",
        )
    else:
        source = _known("source", body.source, sources, model)
    return source, _known("target", body.target, targets, model)


def _known(field: str, given: str, known: list[str], model: Model) -> str:
    found = matching(given, known)
    if found is None:
        codes = [short_of(code) for code in known[:12]]
        more = f" and {len(known) - 12} more (GET /languages)" if len(known) > 12 else ""
        raise invalid(
            field,
            f"{field} is {shown(given)}, which {model.name} does not know: send one of "
            f"{', '.join(codes)}{more}.",
        )
    return found
