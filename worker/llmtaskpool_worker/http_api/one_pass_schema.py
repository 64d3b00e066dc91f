"""The bodies of the routes whose model runs once over its input: what is read, and refused.

Shapes: Cohere's and Jina's rerank, vLLM's score and classify (docs/api.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmtaskpool_worker.http_api.counting import count_keys, count_list
from llmtaskpool_worker.http_api.errors import invalid
from llmtaskpool_worker.http_api.openai_schema import CommonFields, parse

DOCUMENTS_MAX = 1000
"""As many as Cohere takes."""
INPUTS_MAX = 1000
TOP_MAX = 1000

_Whole = Annotated[int, Field(strict=True)]
_Flag = Annotated[bool, Field(strict=True)]
_Text = Annotated[str, Field(strict=True, min_length=1)]
_Texts = Annotated[list[_Text], Field(min_length=1, max_length=INPUTS_MAX, fail_fast=True)]


IMAGES_MAX = 64
_Images = Annotated[list[_Text], Field(min_length=1, max_length=IMAGES_MAX, fail_fast=True)]
_IMAGE = f"a picture in base64, or a list of at most {IMAGES_MAX}"


class TextDocument(BaseModel):
    """A document with its text in a field, as Cohere's older clients and Jina's send it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: _Text


class OnePassFields(CommonFields):
    """What all of these bodies may hold."""

    truncate_prompt_tokens: _Whole | None = Field(
        None,
        ge=-1,
        le=2**31 - 1,
        description="the most tokens of a text, what is beyond is cut off; -1 for the model's most",
    )


class _Scored(OnePassFields):
    use_activation: _Flag = Field(True, description="true or false")


class RerankRequest(_Scored):
    """The body of POST /v1/rerank."""

    query: _Text = Field(description="a text")
    documents: Annotated[
        list[_Text | TextDocument], Field(min_length=1, max_length=DOCUMENTS_MAX, fail_fast=True)
    ] = Field(
        description=f"a list of at most {DOCUMENTS_MAX} texts, or of objects such as "
        '{"text": "a text"}'
    )
    top_n: _Whole | None = Field(
        None, ge=1, le=2**31 - 1, description="how many of the best are wanted, from 1"
    )
    return_documents: _Flag | None = Field(None, description="true or false")
    max_tokens_per_doc: _Whole | None = Field(
        None, ge=1, le=2**31 - 1, description="the most tokens of a document, from 1"
    )

    def texts(self) -> list[str]:
        """The documents' texts."""
        return [one if isinstance(one, str) else one.text for one in self.documents]


class ScoreRequest(_Scored):
    """The body of POST /v1/score."""

    queries: _Text | _Texts | None = Field(
        None, description=f"a text, or a list of at most {INPUTS_MAX}"
    )
    documents: _Text | _Texts | None = Field(
        None, description=f"a text, or a list of at most {INPUTS_MAX}"
    )
    text_1: _Text | _Texts | None = Field(
        None, description=f"a text, or a list of at most {INPUTS_MAX}"
    )
    text_2: _Text | _Texts | None = Field(
        None, description=f"a text, or a list of at most {INPUTS_MAX}"
    )

    def pairs(self) -> list[tuple[str, str]]:
        """One with each, or one by one. Raises ApiError 400 naming the field at fault."""
        names = ("text_1", "text_2")
        if self.queries is not None or self.documents is not None:
            names = ("queries", "documents")
        given = [getattr(self, name) for name in names]
        for name, value in zip(names, given, strict=True):
            if value is None:
                raise invalid(
                    name,
                    f"{name} is missing. Send {names[0]} and {names[1]}, each a text or a list.",
                    code="invalid_missing",
                )
        firsts, seconds = ([one] if isinstance(one, str) else one for one in given)
        if len(firsts) == 1:
            firsts = firsts * len(seconds)
        if len(firsts) != len(seconds):
            raise invalid(
                names[1],
                f"{names[1]} is a list of {len(seconds)}, and {names[0]} one of {len(firsts)}: "
                f"send as many of both, or a single text as {names[0]}.",
            )
        return list(zip(firsts, seconds, strict=True))


class ClassifyRequest(OnePassFields):
    """The body of POST /v1/classify."""

    input: _Text | _Texts | None = Field(
        None, description=f"a text, or a list of at most {INPUTS_MAX}"
    )
    image: _Text | _Images | None = Field(None, description=_IMAGE)
    use_activation: _Flag = Field(True, description="true or false")
    top_k: _Whole | None = Field(
        None,
        ge=1,
        le=TOP_MAX,
        description=f"how many of the best labels are wanted beside, 1 to {TOP_MAX}",
    )


class DetectRequest(CommonFields):
    """The body of POST /v1/detect."""

    image: _Text | _Images = Field(description=_IMAGE)
    threshold: Annotated[float, Field(strict=True, allow_inf_nan=False)] = Field(
        0.5, ge=0, le=1, description="how sure it must be of an object, 0 to 1"
    )


class TagRequest(OnePassFields):
    """The body of POST /v1/tag."""

    input: _Text | _Texts = Field(description=f"a text, or a list of at most {INPUTS_MAX}")
    aggregation: Literal["simple", "none"] = Field("simple", description="simple or none")


class AnswerRequest(CommonFields):
    """The body of POST /v1/answer."""

    question: _Text | _Texts = Field(
        description=f"a text, or a list of at most {INPUTS_MAX} with as many contexts"
    )
    context: _Text | _Texts = Field(
        description=f"the text with the answer, or a list of at most {INPUTS_MAX}"
    )
    top_k: _Whole = Field(1, ge=1, le=100, description="a whole number from 1 to 100")
    max_answer_tokens: _Whole = Field(15, ge=1, le=512, description="a whole number from 1 to 512")

    def pairs(self) -> list[tuple[str, str]]:
        """Each question with its context. Raises ApiError 400."""
        questions = [self.question] if isinstance(self.question, str) else self.question
        contexts = [self.context] if isinstance(self.context, str) else self.context
        if len(contexts) == 1:
            contexts = contexts * len(questions)
        if len(contexts) != len(questions):
            raise invalid(
                "context",
                f"context is a list of {len(contexts)}, and question one of {len(questions)}: send "
                "as many of both, or a single context.",
            )
        return list(zip(questions, contexts, strict=True))


SCHEMAS: Mapping[str, type[CommonFields]] = {
    "rerank": RerankRequest,
    "score": ScoreRequest,
    "classify": ClassifyRequest,
    "tag": TagRequest,
    "answer": AnswerRequest,
    "detect": DetectRequest,
}
"""By kind."""

_LISTS = ("documents", "queries", "text_1", "text_2", "input", "question", "context")


def parse_one_pass(kind: str, body: Mapping[str, Any]) -> Any:
    """A body as its kind's schema. Raises ApiError 400 naming the field."""
    for name in _LISTS:
        count_list(body.get(name), name, DOCUMENTS_MAX)
    count_list(body.get("image"), "image", IMAGES_MAX)
    documents = body.get("documents")
    for place, one in enumerate(documents if isinstance(documents, Sequence) else ()):
        count_keys(one, f"documents[{place}]")
    return parse(SCHEMAS[kind], body)
