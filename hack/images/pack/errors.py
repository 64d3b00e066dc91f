"""The one error a person sees: what is wrong, and what to do about it."""

from __future__ import annotations


class PackError(Exception):
    """Something that keeps an image from being made; ``remedy`` is what to do next."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}\n  remedy: {remedy}")
