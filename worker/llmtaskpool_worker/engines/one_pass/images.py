"""Heads over pictures: classify and detect."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
)

from llmtaskpool_worker.engines.admission import dtype_of, refuse_what_never_fits, step_peak
from llmtaskpool_worker.engines.image_files import PIXELS_MAX, TIMM, BadImage, opened
from llmtaskpool_worker.engines.memory_plan import no_step
from llmtaskpool_worker.engines.one_pass.cores import Cores
from llmtaskpool_worker.engines.one_pass.folding import fold_norms
from llmtaskpool_worker.engines.one_pass.head import Fault, Message
from llmtaskpool_worker.engines.one_pass.in_place import act_in_place
from llmtaskpool_worker.engines.one_pass.loop import OnePassLoop
from llmtaskpool_worker.engines.one_pass.pixels import pixels_of
from llmtaskpool_worker.engines.one_pass.planning import planned
from llmtaskpool_worker.engines.one_pass.text_heads import NOT_FINITE, activated
from llmtaskpool_worker.engines.onnx_files import onnx_file
from llmtaskpool_worker.engines.protocol import (
    AdmitInputs,
    FromEngine,
    Ready,
    RequestFailed,
    Values,
)
from llmtaskpool_worker.engines.weights import ModelRefused, check_numbers, load_weights

log = logging.getLogger("llmtaskpool.engine")

SPOILT = Fault("invalid", "a picture can't be unpacked: it is cut off or spoilt")
STEP_IMAGES = 4
"""Pictures of a step for each core of a CPU."""
STEP_IMAGES_CUDA = 64
SAMPLE = (320, 240)
"""Width and height of a picture that a model is tried with."""
PROBE = (1280, 720)
"""Pixels of the picture over which is measured what a step holds."""
LEAST_PIXELS = 64 * 64
"""Of a picture that must fit."""
THRESHOLD = 0.5
"""How sure a model must be of an object by default, as in transformers' pipeline."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it came, and how many pixels its header says it has."""

    packed: bytes
    pixels: int


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A picture as the model takes it, and its own height and width."""

    pixels: Mapping[str, Tensor]
    size: tuple[int, int]


class Sees(Protocol):
    """What a head over pictures asks of the model below it. ``device``, ``dtype``: to be told."""

    device: torch.device
    dtype: torch.dtype
    shares: bool
    """Whether a batch is one run; else each core runs pictures of its own."""

    def __call__(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Any:
        """What the model gives for (pictures, channels, height, width)."""

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` while it runs from now on."""


class Pictures:
    """Sees over a model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.shares = self.device.type != "cpu"  # cores.py says why
        # The layout that convolutions of a CPU are fastest with; the numbers stay.
        self._model = model if self.shares else model.to(memory_format=torch.channels_last)

    def __call__(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Any:
        """What the model gives for (pictures, channels, height, width)."""
        given = {"pixel_mask": pixel_mask.to(self.device)} if pixel_mask is not None else {}
        return self._model(pixel_values=pixel_values.to(self.device, self.dtype), **given)

    def beat_with(self, beat: Callable[[], None]) -> None:
        """Call ``beat`` at each layer from now on."""
        for layers in self._model.modules():
            if isinstance(layers, nn.ModuleList):
                for layer in layers:
                    layer.register_forward_pre_hook(lambda *_: beat())


class ImageHead:
    """A Head over pictures. ``detects``: objects and their boxes, else labels of the whole."""

    def __init__(self, model: Sees, config: Any, processor: Any, *, detects: bool) -> None:
        self.model, self.processor, self.detects = model, processor, detects
        self.device = model.device
        self.pixels = pixels_of(processor)
        self.cores = Cores(torch.device("cpu"))  # pictures are unpacked there for a GPU too
        on_cpu = self.device.type == "cpu"
        self.budget = STEP_IMAGES * self.cores.count if on_cpu else STEP_IMAGES_CUDA
        self.labels = [str(config.id2label[place]) for place in range(int(config.num_labels))]
        several = getattr(config, "problem_type", None) == "multi_label_classification"
        self.several = several or len(self.labels) == 1
        self.room: int | None = None
        self.picture_bytes, self.pixel_bytes, self.most_pixels = 0, 0, PIXELS_MAX

    def fit_into(self, room: int) -> int:
        """See Head. A picture is unpacked at its own size, then brought to the model's."""
        packed = io.BytesIO()
        Image.new("RGB", PROBE).save(packed, "BMP")
        pixels = PROBE[0] * PROBE[1]
        with step_peak(self.device) as peak, torch.inference_mode():
            (one,) = self._unpacked([Picture(packed.getvalue(), pixels)])
        self.pixel_bytes = max(3, -(-peak() // pixels))
        assert isinstance(one, Unpacked)  # noqa: S101 - it was made above
        with step_peak(self.device) as peak, torch.inference_mode():
            self._forward([one])
        kept = sum(tensor.nbytes for tensor in one.pixels.values())
        self.picture_bytes = kept + peak()
        most = (room - self.picture_bytes) // self.pixel_bytes
        if most < LEAST_PIXELS:
            raise ModelRefused(no_step(self.picture_bytes + LEAST_PIXELS * self.pixel_bytes, room))
        if most < PIXELS_MAX:
            log.warning("memory holds pictures of %d pixels, and not of %d", most, PIXELS_MAX)
        self.most_pixels = min(PIXELS_MAX, most)
        fullest = self.budget * (self.picture_bytes + self.most_pixels * self.pixel_bytes)
        self.room = None if fullest <= room else room
        return min(fullest, room)

    def needs(self, rows: Sequence[Picture]) -> int:
        """See Head."""
        return sum(self.picture_bytes + row.pixels * self.pixel_bytes for row in rows)

    def ready(self) -> Ready:
        """What was loaded."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        about: dict[str, Any] = {"labels": self.labels, "modality": "image"}
        if self.most_pixels < PIXELS_MAX:
            about["most_pixels"] = self.most_pixels
        return Ready(0, 0, [], str(self.device), dtype, 0, about=about)

    def rows(self, message: Message) -> Sequence[Picture] | Fault:
        """The request's pictures, still packed, or why they can't be run."""
        if not isinstance(message, AdmitInputs) or not message.images:
            return Fault("wrong_model", "this model takes pictures")
        found = []
        for packed in message.images:
            try:
                with opened(packed) as picture:
                    found.append(Picture(packed, picture.width * picture.height))
            except BadImage:
                return SPOILT
            if found[-1].pixels > self.most_pixels:
                return Fault(
                    "too_large",
                    f"image: a picture has {found[-1].pixels} pixels, and memory holds "
                    f"{self.most_pixels} here: send it smaller",
                )
        return found

    def size(self, _row: Picture) -> int:
        """Of one picture: the model brings all to one size."""
        return 1

    def cost(self, sizes: Sequence[int]) -> int:
        """Pictures."""
        return sum(sizes)

    def run(self, rows: Sequence[Picture]) -> Sequence[Any]:
        """Unpack, bring to the model's size, one pass: outputs, or a Fault, for each."""
        sizes = [len(row.packed) for row in rows]
        if self.model.shares:
            return self._forward(self.cores.run(rows, sizes, self._unpacked))
        return self.cores.run(rows, sizes, lambda part: self._forward(self._unpacked(part)))

    def _unpacked(self, rows: Sequence[Picture]) -> list[Unpacked | Fault]:
        found: list[Unpacked | Fault] = []
        for row in rows:
            try:
                with opened(row.packed) as packed:
                    picture = packed.convert("RGB")
            except (BadImage, OSError, ValueError, SyntaxError):
                found.append(SPOILT)
                continue
            found.append(Unpacked(self.pixels(picture), (picture.height, picture.width)))
        return found

    def _forward(self, given: Sequence[Unpacked | Fault]) -> list[Any]:
        """One pass for all that the model takes side by side: those that became of one size."""
        found: list[Any] = list(given)
        alike: dict[torch.Size, list[int]] = {}
        for place, one in enumerate(given):
            if isinstance(one, Unpacked):
                alike.setdefault(one.pixels["pixel_values"].shape, []).append(place)
        for places in alike.values():
            batch: list[Unpacked] = [found[place] for place in places]
            pixels = {n: torch.cat([one.pixels[n] for one in batch]) for n in batch[0].pixels}
            outputs = self._outputs(self.model(**pixels), [one.size for one in batch])
            for place, output in zip(places, outputs, strict=True):
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
        self.model.beat_with(beat)


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
    if config.model_type != TIMM and not (folder / "preprocessor_config.json").is_file():
        raise ModelRefused(
            "its preprocessor_config.json is missing, which says how pictures are brought to its "
            "size: save its image processor with transformers (processor.save_pretrained)"
        )
    # Without torchvision: what Pillow does is what models were trained with.
    processor = AutoImageProcessor.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, backend="pil"
    )
    onnx = onnx_file(folder)
    model: Sees
    if onnx is not None:
        from llmtaskpool_worker.engines.one_pass.onnx_heads import load_pictures

        model = load_pictures(onnx, config, task)
    else:
        auto = AutoModelForObjectDetection if task == "detect" else AutoModelForImageClassification
        used = dtype_of(dtype, "float32")
        refuse_what_never_fits(folder, device, used, options)
        plain = load_weights(auto, folder, config, dtype=getattr(torch, used))
        plain.to(device).eval().requires_grad_(requires_grad=False)
        check_numbers(plain)
        model = Pictures(plain)
        if model.dtype is torch.float32:
            given = pixels_of(processor)(Image.effect_noise(SAMPLE, 60).convert("RGB"))
            fold_norms(plain, lambda: _numbers(model(**given)))
            act_in_place(plain, lambda: _numbers(model(**given)))
    head = ImageHead(model, config, processor, detects=task == "detect")
    return planned(head, head.device, threads=threads, options=options)


def _numbers(out: Any) -> Tensor:
    """All that a head makes its answers of, in one row."""
    parts = (out.logits, getattr(out, "pred_boxes", None))
    return torch.cat([part.flatten() for part in parts if part is not None])
