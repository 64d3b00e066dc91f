"""`spec.env` and `spec.envFrom`: variables of the worker, as in a Pod. Pure.

What the operator itself sets, and what changes how programs are loaded, can't be set here; and
what comes by `envFrom` never wins over what the operator sets (Kubernetes puts `env` first).
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar

from pydantic import Field

from llmtaskpool_operator.api.rules import Name, Rule, Wire

_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
_KEY = r"^[-._a-zA-Z0-9]+$"
_RESERVED = r"^(LLMTASKPOOL_.*|LD_.*|PYTHON.*|PATH|HOME|HF_HOME|HF_TOKEN|HF_TOKEN_PATH)$"
Key = Annotated[str, Field(min_length=1, max_length=253, pattern=_KEY)]


class KeyOf(Wire):
    """One key of a Secret or ConfigMap in the pool's namespace."""

    name: Name
    """Name of the object."""
    key: Key
    """Key within it."""
    optional: bool = False
    """True: the pod starts without it, too."""


class EnvSource(Wire):
    """Where a variable's value comes from: one of the two."""

    secret_key_ref: KeyOf | None = None
    """From a key of a Secret."""
    config_map_key_ref: KeyOf | None = None
    """From a key of a ConfigMap."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.secretKeyRef) != has(self.configMapKeyRef)",
            "secretKeyRef",
            "valueFrom names one source: secretKeyRef or configMapKeyRef",
            lambda s: (s.secret_key_ref is None) != (s.config_map_key_ref is None),
        ),
    )


class EnvVar(Wire):
    """One variable of the worker's environment."""

    name: Annotated[str, Field(min_length=1, max_length=253, pattern=_NAME)]
    """Its name, such as `HTTPS_PROXY` or `HF_ENDPOINT`. Those of the worker's own settings, and
    those that change how programs are loaded, are refused."""
    value: Annotated[str, Field(max_length=8192)] | None = None
    """Its value, as it is: nothing in it is replaced."""
    value_from: EnvSource | None = None
    """Where its value comes from."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"!self.name.matches(r'{_RESERVED}')",
            "name",
            "this variable is the operator's or changes how programs are loaded: use the field of "
            "spec that is for it (models[].tokenSecretRef for HF_TOKEN), or leave it out",
            lambda e: re.fullmatch(_RESERVED, e.name) is None,
        ),
        Rule(
            "!(has(self.value) && has(self.valueFrom))",
            "value",
            "a variable has value or valueFrom: remove one",
            lambda e: e.value is None or e.value_from is None,
        ),
    )


class NamedObject(Wire):
    """A Secret or ConfigMap in the pool's namespace."""

    name: Name
    """Name of the object."""
    optional: bool = False
    """True: the pod starts without it, too."""


class EnvFrom(Wire):
    """Variables from all keys of a Secret or a ConfigMap."""

    prefix: Annotated[str, Field(max_length=253, pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$")] = ""
    """What is put before each key."""
    secret_ref: NamedObject | None = None
    """A Secret, all of its keys."""
    config_map_ref: NamedObject | None = None
    """A ConfigMap, all of its keys."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.secretRef) != has(self.configMapRef)",
            "secretRef",
            "an entry of envFrom names one object: secretRef or configMapRef",
            lambda s: (s.secret_ref is None) != (s.config_map_ref is None),
        ),
        Rule(
            "!self.prefix.matches(r'^(LLMTASKPOOL_|LD_|PYTHON)')",
            "prefix",
            "this prefix would make variables that are the operator's or change how programs are "
            "loaded: use another",
            lambda s: re.match(r"(LLMTASKPOOL_|LD_|PYTHON)", s.prefix) is None,
        ),
    )
