"""A model of pictures for the demo: a small ResNet that reads handwritten digits, and ten of them.

`hack/digits.py` has trained it on scikit-learn's digits, and tells how often it is right on those
that it was not trained on. The pictures are some of these. Data: E. Alpaydin and C. Kaynak, Optical
Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, doi 10.24432/C50P49,
CC BY 4.0.
"""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).parent / "model"


def picture(digit: int) -> bytes:
    """A PNG file of somebody's handwritten ``digit``, 0 to 9."""
    return (Path(__file__).parent / "pictures" / f"{digit}.png").read_bytes()
