"""Heads over pictures: classify and detect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
)

from llmtaskpool_worker.engines.image_files import BadImage, opened
from llmtaskpool_worker.engines.one_pass.cores import Cores
from llmtaskpool_worker.engines.one_pass.head import Fault, Message
from llmtaskpool_worker.engines.one_pass.loop import OnePassLoop
from llmtaskpool_worker.engines.one_pass.text_heads import NOT_FINITE, activated
from llmtaskpool_worker.engines.protocol import (
    AdmitInputs,
    FromEngine,
    Ready,
    RequestFailed,
    Values,
)
from llmtaskpool_worker.engines.resident import give_back
from llmtaskpool_worker.engines.weights import ModelRefused, check_numbers, load_weights

SPOILT = Fault("invalid", "a picture can't be unpacked: it is cut off or spoilt")
STEP_IMAGES = 4
"""Pictures of a step for each core of a CPU."""
STEP_IMAGES_CUDA = 64
THRESHOLD = 0.5
"""How sure a model must be of an object by default, as in transformers' pipeline."""


class ImageHead:
    """A Head over pictures. ``detects``: objects and their boxes, else labels of the whole."""

    def __init__(self, model: nn.Module, processor: Any, *, detects: bool) -> None:
        config: Any = model.config
        self.model, self.processor, self.detects = model, processor, detects
        self.device = next(model.parameters()).device
        self.cores = Cores(self.device)
        on_cpu = self.device.type == "cpu"
        self.budget = STEP_IMAGES * self.cores.count if on_cpu else STEP_IMAGES_CUDA
        self.labels = [str(config.id2label[place]) for place in range(int(config.num_labels))]
        several = getattr(config, "problem_type", None) == "multi_label_classification"
        self.several = several or len(self.labels) == 1

    def ready(self) -> Ready:
        """What was loaded."""
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        about = {"labels": self.labels, "modality": "image"}
        return Ready(0, 0, [], str(self.device), dtype, 0, about=about)

    def rows(self, message: Message) -> Sequence[bytes] | Fault:
        """The request's pictures, still packed, or why they can't be run."""
        if not isinstance(message, AdmitInputs) or not message.images:
            return Fault("wrong_model", "this model takes pictures")
        return message.images

    def size(self, _row: bytes) -> int:
        """Of one picture: the model brings all to one size."""
        return 1

    def cost(self, sizes: Sequence[int]) -> int:
        """Pictures."""
        return sum(sizes)

    def run(self, rows: Sequence[bytes]) -> Sequence[Any]:
        """Unpack, bring to the model's size, one pass: outputs, or a Fault, for each."""
        return self.cores.run(rows, [len(row) for row in rows], self._run)

    def _run(self, rows: Sequence[bytes]) -> list[Any]:
        found: list[Any] = [None] * len(rows)
        alike: dict[tuple[int, ...], list[tuple[int, Any, tuple[int, int]]]] = {}
        for place, row in enumerate(rows):
            try:
                with opened(row) as packed:
                    picture = packed.convert("RGB")
            except (BadImage, OSError, ValueError, SyntaxError):
                found[place] = SPOILT
                continue
            given = self.processor(images=[picture], return_tensors="pt")
            shape = tuple(given["pixel_values"].shape)
            alike.setdefault(shape, []).append((place, given, (picture.height, picture.width)))
        for batch in alike.values():
            given = {
                name: torch.cat([one[name] for _, one, _ in batch]).to(self.device)
                for name in ("pixel_values", "pixel_mask")
                if name in batch[0][1]
            }
            outputs = self._outputs(self.model(**given), [size for _, _, size in batch])
            for (place, _, _), output in zip(batch, outputs, strict=True):
                finite = all(bool(torch.isfinite(one).all()) for one in output)
                found[place] = output if finite else NOT_FINITE
        return found

    def _outputs(self, out: Any, sizes: list[tuple[int, int]]) -> list[tuple[Tensor, ...]]:
        """Of each picture its logits; or scores, labels and boxes of all that may be objects."""
        if not self.detects:
            return [(one.float().cpu(),) for one in out.logits]
        found = self.processor.post_process_object_detection(
            out, threshold=-1.0, target_sizes=sizes
        )
        return [(one["scores"].cpu(), one["labels"].cpu(), one["boxes"].cpu()) for one in found]

    def answer(self, message: Message, values: Sequence[Any], size: int) -> FromEngine:
        """Probabilities of labels, or objects."""
        options = message.options if isinstance(message, AdmitInputs) else {}
        try:
            told: list[Any]
            if self.detects:
                threshold = float(options.get("threshold", THRESHOLD))
                told = [self._objects(one, threshold) for one in values]
            else:
                told = [activated(one, several=self.several, options=options) for (one,) in values]
        except (TypeError, ValueError):
            return RequestFailed(message.id, "invalid", "the options can't be used")
        return Values(message.id, told, size)

    def _objects(self, output: Sequence[Tensor], threshold: float) -> list[dict[str, Any]]:
        """In whole pixels, the surest first."""
        scores, labels, boxes = output
        found = []
        for place in scores.argsort(descending=True).tolist():
            if float(scores[place]) > threshold:
                xmin, ymin, xmax, ymax = boxes[place].int().tolist()
                box = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
                label = self.labels[int(labels[place])]
                found.append({"label": label, "score": float(scores[place]), "box": box})
        return found

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` at each layer from now on."""
        for layers in self.model.modules():
            if isinstance(layers, nn.ModuleList):
                for layer in layers:
                    layer.register_forward_pre_hook(lambda *_: beat())


def load_images(
    folder: Path,
    config: Any,
    task: str,
    *,
    device: str,
    dtype: str | None,
    threads: int,
    options: dict[str, Any],
) -> OnePassLoop:
    """The loop over the model of pictures in ``folder``. Raises ModelRefused."""
    if not (folder / "preprocessor_config.json").is_file():
        raise ModelRefused(
            "its preprocessor_config.json is missing, which says how pictures are brought to its "
            "size: save its image processor with transformers (processor.save_pretrained)"
        )
    # Without torchvision: what Pillow does is what models were trained with.
    processor = AutoImageProcessor.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, backend="pil"
    )
    auto = AutoModelForObjectDetection if task == "detect" else AutoModelForImageClassification
    model = load_weights(auto, folder, config, dtype=getattr(torch, dtype or "float32"))
    model.to(device).eval().requires_grad_(requires_grad=False)
    check_numbers(model)
    give_back()
    head = ImageHead(model, processor, detects=task == "detect")
    return OnePassLoop(head, threads=threads, max_threads=int(options.get("max_threads", 256)))
