"""Files of sound: their kind and length by their header, and what is in them. No torch.

A small file may hold hours (silence packs well), so one that is too long is refused by its header,
in the API process, before anything of it is unpacked; and unpacking stops at the same length.
"""

from __future__ import annotations

import io
from typing import Any

FORMATS = ("WAV", "FLAC", "OGG", "MP3")
SECONDS_MAX = 1800.0
CHANNELS_MAX = 8
RATES = (4_000, 192_000)
"""Samples a second, the least and the most."""
HEARD_RATE = 16_000
"""At which models hear."""
_BLOCK = 1 << 16


class BadSound(Exception):
    """The message says what is wrong, and what to send instead."""


def seconds_of(packed: bytes) -> float:
    """How long a file is, of which the header was read alone. Raises BadSound."""
    with _opened(packed) as sound:
        return float(sound.frames / sound.samplerate)


def heard(packed: bytes) -> Any:
    """What is in a file: one channel at HEARD_RATE, numpy's float32. Raises BadSound."""
    import numpy as np
    import soundfile
    import soxr

    found = []
    with _opened(packed) as sound:
        rate = sound.samplerate
        resampled = soxr.ResampleStream(rate, HEARD_RATE, 1, dtype="float32")
        left = int(SECONDS_MAX * rate)
        try:
            while left > 0:
                block = sound.read(min(_BLOCK, left), dtype="float32", always_2d=True)
                if not len(block):
                    break
                left -= len(block)
                mono = np.nan_to_num(block.mean(axis=1, dtype=np.float32))
                found.append(mono if rate == HEARD_RATE else resampled.resample_chunk(mono))
        except soundfile.LibsndfileError:
            raise BadSound("ends in what can't be decoded: send the whole file") from None
    if rate != HEARD_RATE:
        found.append(resampled.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def _opened(packed: bytes) -> Any:
    import soundfile

    kinds = ", ".join(FORMATS)
    try:
        sound = soundfile.SoundFile(io.BytesIO(packed))
    except (soundfile.LibsndfileError, RuntimeError, TypeError, ValueError):
        raise BadSound(f"is no sound that is read here: send one of {kinds}") from None
    wrong = _wrong(sound, kinds)
    if wrong:
        sound.close()
        raise BadSound(wrong)
    return sound


def _wrong(sound: Any, kinds: str) -> str:
    """What is wrong with a header; empty when nothing is."""
    if sound.format not in (*FORMATS, "WAVEX", "RF64"):
        return f"is of a kind that isn't read here: send one of {kinds}"
    if not RATES[0] <= sound.samplerate <= RATES[1]:
        return f"has {sound.samplerate} samples a second: send {RATES[0]} to {RATES[1]}"
    if not 1 <= sound.channels <= CHANNELS_MAX:
        return f"has {sound.channels} channels: send at most {CHANNELS_MAX}"
    if sound.frames < 1:
        return "holds no sound: send a file with some"
    seconds = sound.frames / sound.samplerate
    if seconds > SECONDS_MAX:
        return f"is {seconds:.0f} s long: send at most {SECONDS_MAX:.0f} s, in several files"
    return ""
