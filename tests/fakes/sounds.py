"""Files of sound, made up: tones that rise and fall, with some noise."""

from __future__ import annotations

import io

import numpy as np
import soundfile


def sound(seconds=1.0, *, rate=16_000, channels=1, kind="WAV", seed=0, subtype=None):
    """A file of so many seconds, as bytes."""
    places = np.arange(int(seconds * rate)) / rate
    draw = np.random.default_rng(seed)
    tone = np.sin(2 * np.pi * (200 + 50 * seed + 80 * np.sin(3 * places)) * places)
    wave = 0.4 * tone * np.abs(np.sin(2 * places)) + 0.02 * draw.standard_normal(len(places))
    packed = io.BytesIO()
    data = np.repeat(wave[:, None], channels, axis=1)
    soundfile.write(packed, data, rate, format=kind, subtype=subtype)
    return packed.getvalue()


def silence(seconds, *, rate=16_000):
    """FLAC of so many seconds: hours of it are some kilobytes."""
    packed = io.BytesIO()
    with soundfile.SoundFile(packed, "w", rate, 1, format="FLAC") as file:
        block = np.zeros(rate * 60, np.int16)
        for _ in range(int(seconds) // 60):
            file.write(block)
    return packed.getvalue()
