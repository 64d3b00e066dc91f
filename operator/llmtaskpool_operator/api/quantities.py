"""Kubernetes' quantities ("500m", "1Gi", "1e3") as numbers. Pure.

The form is that of k8s.io/apimachinery/pkg/api/resource.ParseQuantity: a decimal number, then a
suffix of a power of ten, of a power of 1024, or an exponent.
"""

from __future__ import annotations

import re
from decimal import Decimal, DecimalException

PATTERN = (
    r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)"
    r"(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][-+]?[0-9]{1,2})?$"
)
"""Of an amount: a quantity that is not negative."""
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_FORM = re.compile(r"([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))([a-zA-Z]*)([-+]?[0-9]*)", re.ASCII)


def number(quantity: object) -> Decimal | None:
    """Its value; None for what is no quantity. ``kubernetes.utils`` has this, with a client."""
    found = _FORM.fullmatch(str(quantity))
    if found is None:
        return None
    digits, suffix, exponent = found.groups()
    try:
        value = Decimal(digits)
        if exponent:
            return value.scaleb(int(exponent)) if suffix in ("e", "E") else None
        if suffix in _BINARY:
            return value * Decimal(1024) ** _BINARY[suffix]
        return value.scaleb(_DECIMAL[suffix]) if suffix in _DECIMAL else None
    except DecimalException:  # one beyond all measure
        return None
