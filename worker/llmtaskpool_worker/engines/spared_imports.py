"""What transformers would import beside a text model because it is installed, and which never runs.

It takes torchvision for the pictures that a text model doesn't read, scipy for the losses of
training, accelerate for weights on several devices, triton for compiling what runs on a GPU. With
all of them there, a start took 8 s of a processor and 811 MiB at most, and 6 s and 682 MiB without.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmtaskpool_worker.engines.image_files import takes_pictures

SPARED = ("torchvision", "scipy", "sklearn", "pandas", "accelerate")
FOR_GPUS = "triton"


def spare(folder: Path, modules: dict[str, Any], *, gpu: bool) -> None:
    """Let imports take SPARED for not installed, where the model in ``folder`` reads no pictures.

    FOR_GPUS is spared likewise where this process sees no GPU.

    ``modules`` is sys.modules, where ``None`` is Python's own way to say so. Nothing is done once
    transformers is there (for a conversion) and knows of them: what it imports later must exist.
    """
    config = folder / "config.json"
    if "transformers" in modules or not config.is_file():
        return
    if not takes_pictures(json.loads(config.read_bytes())):
        for name in SPARED if gpu else (*SPARED, FOR_GPUS):
            modules.setdefault(name, None)
