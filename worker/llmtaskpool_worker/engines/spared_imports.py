"""What transformers would import beside a text model because it is installed, and which never runs.

It takes torchvision for the pictures that a text model doesn't read, scipy for the losses of
training, accelerate for weights on several devices: half of what an engine's start costs where
they are there for somebody else's sake, and memory in each engine's process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmtaskpool_worker.engines.image_files import takes_pictures

SPARED = ("torchvision", "scipy", "sklearn", "pandas", "accelerate")


def spare(folder: Path, modules: dict[str, Any]) -> None:
    """Let imports take SPARED for not installed, where the model in ``folder`` reads no pictures.

    ``modules`` is sys.modules, where ``None`` is Python's own way to say so. Nothing is done once
    transformers is there (for a conversion) and knows of them: what it imports later must exist.
    """
    config = folder / "config.json"
    if "transformers" in modules or not config.is_file():
        return
    if not takes_pictures(json.loads(config.read_bytes())):
        for name in SPARED:
            modules.setdefault(name, None)
