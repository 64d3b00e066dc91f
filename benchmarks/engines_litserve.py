"""LitServe around the model of engines_images.py: a server as its documentation builds one.

python benchmarks/engines_litserve.py PORT WEIGHTS THREADS
"""

from __future__ import annotations

import io
import sys
from base64 import b64decode
from typing import Any

import litserve
import torch
import torchvision
from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, WINDOW_SECONDS = 8, 0.01


def transform() -> Any:
    """torchvision's for its own MobileNetV2."""
    return torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(256),
            torchvision.transforms.CenterCrop(224),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize(MEAN, STD),
        ]
    )


def mobilenet(weights: str) -> torch.nn.Module:
    """torchvision's mobilenet_v2 with the weights of a file."""
    model = torchvision.models.mobilenet_v2().eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model  # type: ignore[no-any-return]


class Classifier(litserve.LitAPI):
    """Pictures in base64 to probabilities; a batch is what came within the window."""

    def __init__(self, weights: str, threads: int) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WINDOW_SECONDS)
        self.weights, self.threads = weights, threads

    def setup(self, device: str) -> None:
        """Load the model in the process that runs it."""
        torch.set_num_threads(self.threads)
        self.model, self.transform = mobilenet(self.weights).to(device), transform()

    def decode_request(self, request: dict[str, str]) -> torch.Tensor:
        """A picture as the model takes it."""
        picture = Image.open(io.BytesIO(b64decode(request["image"])))
        return self.transform(picture.convert("RGB"))  # type: ignore[no-any-return]

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """All of them as one."""
        return torch.stack(inputs)

    @torch.inference_mode()
    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Probabilities."""
        return self.model(x).softmax(-1)  # type: ignore[no-any-return]

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        """A row for each request."""
        return list(output)

    def encode_response(self, output: torch.Tensor) -> dict[str, list[float]]:
        """What ours sends too: all of them."""
        return {"probs": output.tolist()}


if __name__ == "__main__":
    served = Classifier(sys.argv[2], int(sys.argv[3]))
    # Its own 30 s for a request are too few on a busy machine, where ours waits as well.
    server = litserve.LitServer(served, accelerator="cpu", timeout=False)
    server.run(
        port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="error"
    )
