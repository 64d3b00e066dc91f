"""Labels, annotations and resource names as Kubernetes has them, refused at apply. Pure.

A structural schema has no pattern for the keys of a map, so CEL says it: `rule_of_keys`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

NAME_PART = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_DNS = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
KEY = rf"^({_DNS}/)?{NAME_PART}$"
"""Of a label, an annotation, a taint or an extended resource: [prefix/]name."""
VALUE = rf"^({NAME_PART})?$"
"""Of a label."""
KEY_WORDS = (
    "use [prefix/]name: of the name at most 63 of A-Z, a-z, 0-9, -, _ and ., beginning and "
    "ending with a letter or digit; the prefix as a DNS name"
)
LABELS_MAX = 32

LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=KEY)]
LabelValue = Annotated[str, Field(max_length=63, pattern=VALUE)]


def keyed(
    cel: str, message: str, holds: Callable[[str], bool], *, field: str = ""
) -> tuple[dict[str, Any], AfterValidator]:
    """A rule for each key of a map: an entry of x-kubernetes-validations, and the same here."""
    text = f"{field}{message}"

    def check(value: dict[str, Any]) -> dict[str, Any]:
        if not all(map(holds, value)):
            raise PydanticCustomError("rule", "{text}", {"text": text})
        return value

    return {"rule": f"self.all(key, {cel})", "message": text}, AfterValidator(check)


def is_key(text: str) -> bool:
    """Whether it is a key of labels."""
    return re.fullmatch(KEY.strip("^$"), text, re.ASCII) is not None and len(text) <= 317


IS_KEY = f"key.size() <= 317 && key.matches(r'{KEY}')"
_key_rule, _key_check = keyed(IS_KEY, f"a key is no label: {KEY_WORDS}", is_key)

Labels = Annotated[
    dict[str, LabelValue],
    Field(max_length=LABELS_MAX, json_schema_extra={"x-kubernetes-validations": [_key_rule]}),
    _key_check,
]
"""Labels to select by."""

_OURS = ("llmtaskpool.io/", "app.kubernetes.io/")
_IS_OURS = "key.startsWith('llmtaskpool.io/') || key.startsWith('app.kubernetes.io/')"
_own_rule, _own_check = keyed(
    f"!({_IS_OURS})",
    "a key is one of the operator's own: leave out llmtaskpool.io/ and app.kubernetes.io/",
    lambda key: not key.startswith(_OURS),
)
OwnLabels = Annotated[
    dict[str, LabelValue],
    Field(
        max_length=LABELS_MAX,
        json_schema_extra={"x-kubernetes-validations": [_key_rule, _own_rule]},
    ),
    _key_check,
    _own_check,
]
"""Labels that are added to an object of ours."""

_GIVES_RIGHTS = (
    "security.beta.kubernetes.io/",
    "security.alpha.kubernetes.io/",
    "sidecar.istio.io/userVolume",
    "pod-deletion-cost",
)
_rights_rule, _rights_check = keyed(
    " && ".join(f"!key.contains('{part}')" for part in _GIVES_RIGHTS),
    "a key would loosen what holds a pod in its place (AppArmor, seccomp, mounts, deletion cost): "
    "leave it out",
    lambda key: not any(part in key for part in _GIVES_RIGHTS),
)
Annotations = Annotated[
    dict[str, Annotated[str, Field(max_length=4096)]],
    Field(
        max_length=LABELS_MAX,
        json_schema_extra={"x-kubernetes-validations": [_key_rule, _own_rule, _rights_rule]},
    ),
    _key_check,
    _own_check,
    _rights_check,
]
"""Annotations that are added to an object of ours."""
