"""Breaks the shared queue on purpose and judges what was promised against what was seen."""
