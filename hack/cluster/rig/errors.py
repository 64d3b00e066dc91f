"""The one error a person sees: what is wrong, and what to do about it."""

from __future__ import annotations


class RigError(Exception):
    """Something the rig can't get past.

    `problem` names the thing and its value, `remedy` is what the reader can do next.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}\n  remedy: {remedy}")
        self.problem = problem
        self.remedy = remedy
