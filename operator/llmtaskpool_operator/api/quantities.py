"""Kubernetes' quantities ("500m", "1Gi") as numbers. Pure."""

from __future__ import annotations

from decimal import Decimal, DecimalException

_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}


def number(quantity: object) -> Decimal | None:
    """Its value; None for what is no quantity. ``kubernetes.utils`` has this, with a client."""
    text = str(quantity)
    digits = text.rstrip("numkKMGTPEi")
    suffix = text[len(digits) :]
    try:
        value = Decimal(digits)
        if not value.is_finite():
            return None
        if suffix in _BINARY:
            return value * Decimal(1024) ** _BINARY[suffix]
        return value.scaleb(_DECIMAL[suffix]) if suffix in _DECIMAL else None
    except DecimalException:  # no number, or one beyond all measure
        return None
