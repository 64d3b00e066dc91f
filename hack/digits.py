"""Train the demo's model of handwritten digits anew: `python hack/digits.py`, ten seconds.

Writes operator/llmtaskpool_operator/local/digits/: the model as transformers has it, and a picture
of each digit out of those that it was not trained on. The same machine gives the same files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

FOLDER = Path(__file__).parents[1] / "operator" / "llmtaskpool_operator" / "local" / "digits"
SIDE = 32
EPOCHS = 40


def pictures(rows: np.ndarray) -> list[Image.Image]:
    """Of 8 x 8 numbers from 0 to 16, dark on white as on paper."""
    grey = (255 - rows.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    return [Image.fromarray(one) for one in grey]


def main() -> None:
    """Train, tell how good it is, write."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows, labels = load_digits(return_X_y=True)
    split = train_test_split(rows, labels, test_size=0.3, random_state=0, stratify=labels)
    processor = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})

    def pixels(of: np.ndarray) -> torch.Tensor:
        given = [one.convert("RGB") for one in pictures(of)]
        found: torch.Tensor = processor(images=given, return_tensors="pt")["pixel_values"]
        return found

    seen, unseen = pixels(split[0]), pixels(split[1])
    wanted, held_out = torch.tensor(split[2]), torch.tensor(split[3])
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24],
        depths=[1, 1, 1],
        layer_type="basic",
        id2label={digit: str(digit) for digit in range(10)},
    )
    model = ResNetForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for places in torch.randperm(len(seen)).split(128):
            optimizer.zero_grad()
            logits = model(pixel_values=seen[places]).logits
            torch.nn.functional.cross_entropy(logits, wanted[places]).backward()
            optimizer.step()
        plan.step()
    model.eval()
    with torch.inference_mode():
        told = model(pixel_values=unseen).logits.softmax(-1)
    right = told.argmax(-1) == held_out
    sys.stdout.write(f"right on {float(right.float().mean()):.1%} of {len(right)} unseen digits\n")
    model.save_pretrained(FOLDER / "model")
    processor.save_pretrained(FOLDER / "model")
    (FOLDER / "pictures").mkdir(exist_ok=True)
    for digit in range(10):
        sure = torch.where(held_out == digit, told[:, digit], torch.zeros(()))
        place = int(sure.argsort(descending=True)[5])  # a clear one, as somebody wrote it
        pictures(split[1][place])[0].resize((64, 64), Image.Resampling.BICUBIC).save(
            FOLDER / "pictures" / f"{digit}.png", optimize=True
        )


if __name__ == "__main__":
    main()
