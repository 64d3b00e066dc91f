"""What an engine process may know of the worker's environment: no keys, no tokens but the hub's."""

from __future__ import annotations

import os
from pathlib import Path

from llmtaskpool_worker.engines.hub import CACHE_BYTES
from llmtaskpool_worker.engines.protocol import ModelSpec

CACHE_DIR = "LLMTASKPOOL_CACHE_DIR"
TOKEN_FILE = "LLMTASKPOOL_HUB_TOKEN_FILE"  # noqa: S105  the name of a variable
TOKENS_DIR = "LLMTASKPOOL_HUB_TOKENS_DIR"
_KEPT = frozenset(
    {
        *("PATH", "HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *(CACHE_DIR, CACHE_BYTES),
    }
)
_KEPT_PREFIXES = ("CUDA_", "NVIDIA_", "HF_", "OMP_", "MKL_", "KMP_", "PYTHON", "PYTORCH_", "TORCH_")


def engine_environment(spec: ModelSpec) -> dict[str, str]:
    """The environment of the model's engine process."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT
        or name.startswith(_KEPT_PREFIXES)
        or (name.islower() and name.upper() in _KEPT and name.endswith("_proxy"))
    }
    kept |= {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",  # progress is told in Loading frames
        "MALLOC_ARENA_MAX": "2",  # fewer arenas to leave holes in
    }
    if not spec.source.startswith("hf://"):
        kept["HF_HUB_OFFLINE"] = "1"
        kept.pop("HF_TOKEN", None)
    elif token := hub_token(spec.name):
        kept["HF_TOKEN"] = token
    return kept


def hub_token(model: str) -> str | None:
    """The hub's token for a model: its own file's, else the common file's; read at each start."""
    files = []
    if folder := os.environ.get(TOKENS_DIR):
        files.append(Path(folder) / model.replace("/", "%2F"))
    if common := os.environ.get(TOKEN_FILE):
        files.append(Path(common))
    for file in files:
        try:
            token = file.read_text("utf-8").strip()
        except (OSError, ValueError):
            continue
        if token and len(token.split()) == 1:
            return token
    return None
