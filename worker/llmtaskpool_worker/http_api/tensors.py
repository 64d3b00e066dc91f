"""Tensors of Open Inference Protocol v2: from JSON or bytes to what an engine takes, and back.

https://github.com/kserve/open-inference-protocol, inference_rest.md and the binary tensor data
extension: numbers in row-major order, bytes little-endian.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from math import prod
from sys import byteorder
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmtaskpool_worker.http_api.counting import count_keys, count_list
from llmtaskpool_worker.http_api.errors import from_validation, invalid
from llmtaskpool_worker.scheduling.task import Tensor

TENSORS_MAX = 64
CODES: Mapping[str, str] = {"FP32": "f", "FP64": "d", "INT32": "i", "INT64": "q"}
"""Datatypes that are read, and what Python's array calls them."""

_Name = Annotated[str, Field(strict=True, min_length=1, max_length=256)]
_Dimension = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    name: _Name
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferInput(_Part):
    """One tensor of a request."""

    shape: Annotated[list[_Dimension], Field(min_length=1, max_length=8, fail_fast=True)]
    datatype: Literal["FP32", "FP64", "INT32", "INT64"]
    data: list[Any] | None = None


class InferOutput(_Part):
    """One tensor that is wanted."""


class InferRequest(BaseModel):
    """The body of POST /v2/models/{model}/infer."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    id: _Name | None = Field(None, description="a text of at most 256 letters")
    parameters: dict[str, Any] = Field(default_factory=dict, description="an object")
    inputs: Annotated[
        list[InferInput], Field(min_length=1, max_length=TENSORS_MAX, fail_fast=True)
    ] = Field(
        description='a list of objects such as {"name": "x", "shape": [1, 2], "datatype": "FP32", '
        '"data": [0.5, 1]}'
    )
    outputs: Annotated[list[InferOutput], Field(max_length=TENSORS_MAX, fail_fast=True)] = Field(
        default_factory=list, description='a list of objects such as {"name": "output"}'
    )

    def binary(self, name: str) -> bool:
        """Whether an output is wanted as bytes."""
        for output in self.outputs:
            if output.name == name and "binary_data" in output.parameters:
                return output.parameters["binary_data"] is True
        return self.parameters.get("binary_data_output") is True


def parse_infer(body: Mapping[str, Any]) -> InferRequest:
    """A checked body. Raises ApiError 400 naming the field."""
    count_keys(body, "body")
    count_keys(body.get("parameters"), "parameters")
    for name in ("inputs", "outputs"):
        parts = body.get(name)
        count_list(parts, name, TENSORS_MAX)
        for place, part in enumerate(parts if isinstance(parts, list) else ()):
            count_keys(part, f"{name}[{place}]")
            if isinstance(part, Mapping):
                count_keys(part.get("parameters"), f"{name}[{place}].parameters")
    try:
        return InferRequest.model_validate({k: v for k, v in body.items() if v is not None})
    except ValidationError as error:
        raise from_validation(error, InferRequest) from None


def tensors_of(
    wanted: InferRequest, about: Mapping[str, Any], after: memoryview
) -> tuple[Tensor, ...]:
    """The tensors of a request; ``after`` are the bytes behind its JSON.

    ``about`` is what the model takes. Raises ApiError 400 naming the field.
    """
    known = {one["name"]: one for one in about.get("inputs", ())}
    found = []
    for place, given in enumerate(wanted.inputs):
        field = f"inputs[{place}]"
        if given.name not in known:
            wanted_names = ", ".join(known)
            raise invalid(
                f"{field}.name", f"{field}.name is none of this model's: send {wanted_names}."
            )
        _check_shape(f"{field}.shape", given.shape, known[given.name]["shape"])
        count = prod(given.shape)
        if "binary_data_size" in given.parameters:
            data, after = _from_bytes(field, given, count, after)
        else:
            data = _from_json(f"{field}.data", given, count)
        found.append(Tensor(given.name, given.datatype, tuple(given.shape), data))
    if len(after):
        raise invalid("inputs", f"inputs leave {len(after)} bytes of the body: send their sizes.")
    for name in known:
        if sum(one.name == name for one in found) != 1:
            raise invalid("inputs", f"inputs need the tensor {name} once.")
    if len({one.shape[0] for one in found if known[one.name]["shape"][0] == -1}) > 1:
        raise invalid("inputs", "inputs have different numbers of rows: send as many of each.")
    for output in wanted.outputs:
        names = [one["name"] for one in about.get("outputs", ())]
        if output.name not in names:
            raise invalid("outputs", f"outputs of this model are {', '.join(names)}: name those.")
    return tuple(found)


def _check_shape(field: str, shape: Sequence[int], wanted: Sequence[int]) -> None:
    fits = len(shape) == len(wanted) and all(
        size >= 1 and most in (-1, size) for size, most in zip(shape, wanted, strict=False)
    )
    if not fits:
        raise invalid(
            field, f"{field} is {list(shape)}: this model takes {list(wanted)}, -1 is any from 1."
        )


def _from_bytes(
    field: str, given: InferInput, count: int, after: memoryview
) -> tuple[bytes, memoryview]:
    size = given.parameters["binary_data_size"]
    wanted = count * array(CODES[given.datatype]).itemsize
    if type(size) is not int or size != wanted or size > len(after) or given.data is not None:
        name = f"{field}.parameters.binary_data_size"
        raise invalid(
            name,
            f"{name} must be {wanted}, with as many bytes behind the JSON, {len(after)} of which "
            "are left, and without data.",
        )
    return bytes(after[:size]), after[size:]


def _from_json(field: str, given: InferInput, count: int) -> bytes:
    numbers: list[Any] = given.data or []
    while numbers and isinstance(numbers[0], list):  # as deep as JSON may be, at most
        if not all(isinstance(one, list) for one in numbers):
            raise invalid(field, f"{field} has lists beside numbers: send one or the other.")
        numbers = [number for one in numbers for number in one]
    if len(numbers) != count:
        raise invalid(
            field, f"{field} has {len(numbers)} numbers, and shape asks for {count}: send as many."
        )
    kinds = (int,) if given.datatype.startswith("INT") else (int, float)
    if not all(type(one) in kinds for one in numbers):
        raise invalid(field, f"{field} holds what is no {given.datatype}: send numbers alone.")
    try:
        return little_endian(array(CODES[given.datatype], numbers))
    except OverflowError:
        raise invalid(
            field, f"{field} holds a number too large for {given.datatype}: send smaller ones."
        ) from None


def little_endian(numbers: array[Any]) -> bytes:
    """The bytes of an array, as engines and the protocol have them."""
    if byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def answered(
    outputs: Sequence[Mapping[str, Any]], wanted: InferRequest
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Outputs as they were wanted: those of the JSON, and the bytes that follow it."""
    names = {one.name for one in wanted.outputs}
    shown: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for one in outputs:
        if names and one["name"] not in names:
            continue
        told: dict[str, Any] = dict(one)
        if wanted.binary(one["name"]):
            data = little_endian(array(CODES[one["datatype"]], told.pop("data")))
            told["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        shown.append(told)
    return shown, binary
