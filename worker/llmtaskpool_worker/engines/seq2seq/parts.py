"""From the tokens of one window of sound to its parts, and to where the next window begins. Pure.

As Whisper's own long transcription does it (Radford et al., 2022, section 4.5), and transformers'
``generate``: two times side by side end a part; what follows the last such pair is heard again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Part = tuple[float, float, list[int]]
"""From, until, in seconds, and tokens."""


@dataclass(frozen=True, slots=True)
class Times:
    """``first``: the token of 0.00 s; the next ones are ``precision`` seconds later each.

    ``frames``: of a window's features, in one such step.
    """

    first: int
    precision: float
    frames: int


def parts_of(
    tokens: Sequence[int], times: Times, *, offset: float, heard: int
) -> tuple[list[Part], int]:
    """Parts of a window that begins at ``offset`` seconds, and the frames that are done with.

    ``heard``: frames of sound in the window.
    """
    is_time = [token >= times.first for token in tokens]
    ends_alone = is_time[-2:] == [False, True]
    cuts = [i + 1 for i in range(len(tokens) - 1) if is_time[i] and is_time[i + 1]]
    if not cuts:
        until = heard / times.frames
        last = [token for token in tokens if token >= times.first]
        if last and last[-1] != times.first:
            until = last[-1] - times.first
        return [(offset, offset + until * times.precision, list(tokens))], heard
    if ends_alone:
        cuts.append(len(tokens))
    else:
        cuts[-1] += 1
    found: list[Part] = []
    start = 0
    for place, cut in enumerate(cuts):
        part = list(tokens[start:cut])
        end = part[-1 if place < len(cuts) - 1 or ends_alone else -2]
        found.append(
            (
                offset + (part[0] - times.first) * times.precision,
                offset + (end - times.first) * times.precision,
                part,
            )
        )
        start = cut
    if ends_alone:
        return found, heard
    return found, (tokens[start - 2] - times.first) * times.frames
