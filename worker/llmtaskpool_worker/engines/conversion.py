"""GGUF to a Hugging Face folder with safetensors, once.

Reading GGUF takes most of a minute (its arrays are decoded one by one); a converted model loads
in seconds. The result appears with one rename, and a lock lets the first of several workers
convert while the others wait.

It is done by a process of its own, ``python -m llmtaskpool_worker.engines.conversion GGUF FOLDER``,
which tells how far it is in a JSON object a line: what it imports and leaves in the heap, 66 MiB
for SmolLM2, is gone with it and not the engine's for as long as that lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llmtaskpool_worker.disclosure import where_raised
from llmtaskpool_worker.engines import load_errors
from llmtaskpool_worker.engines.parent import end_with_parent
from llmtaskpool_worker.engines.sources import Progress, SourceRefused
from llmtaskpool_worker.engines.weight_files import unreadable


def convert_gguf(gguf: Path, target: Path, progress: Progress) -> None:
    """Write ``target``; returns at once when another process has written it meanwhile.

    A ``target`` whose weights are cut off or spoilt is written anew.

    Raises:
        SourceRefused: the file can't be read as a model, or the extra `gguf` is missing.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        progress("waiting for another conversion", 0.0)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            if not unreadable(target):
                return
            shutil.rmtree(target)  # who has it mapped keeps what it reads
        unfinished = Path(tempfile.mkdtemp(prefix=".converting-", dir=target.parent))
        try:
            _convert(gguf, unfinished, progress)
            unfinished.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _convert(gguf: Path, folder: Path, progress: Progress) -> None:
    command = [sys.executable, "-m", "llmtaskpool_worker.engines.conversion"]
    with subprocess.Popen(  # noqa: S603 - our own
        [*command, gguf, folder], stdout=subprocess.PIPE
    ) as converting:
        assert converting.stdout is not None  # noqa: S101 - as asked for
        for line in converting.stdout:
            match json.loads(line):
                case {"refused": str(why), "may_pass": bool(later)}:
                    raise SourceRefused(why, may_pass=later)
                case {"stage": str(stage), "done": float(done)}:
                    progress(stage, done)
    if code := converting.returncode:
        raise SourceRefused(
            f"source {gguf.name!r}: what converts it ended with exit code {code}: is there too "
            "little memory? Raise the container's limit",
            may_pass=True,
        )


def main() -> int:
    """Convert the file that the first argument names into the folder that the second does."""
    end_with_parent()
    gguf, folder = map(Path, sys.argv[1:])

    def say(**what: object) -> None:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()

    try:
        convert_here(gguf, folder, lambda stage, done: say(stage=stage, done=done))
    except SourceRefused as error:
        say(refused=str(error), may_pass=error.may_pass)
    except Exception as error:
        sys.stderr.write(f"{gguf.name} can't be converted: {where_raised(error)}\n")
        say(refused=load_errors.told(error), may_pass=load_errors.may_pass(error))
    return 0


def convert_here(gguf: Path, folder: Path, progress: Progress) -> None:
    """The conversion itself, in this process.

    Raises:
        SourceRefused: as convert_gguf; and whatever goes wrong with the machine.
    """
    try:
        import accelerate  # noqa: F401 - transformers asks for it here
        import gguf as _  # noqa: F401 - likewise
    except ImportError:
        raise SourceRefused(
            f"source {gguf.name!r} is GGUF: install llmtaskpool with its extra 'gguf'"
        ) from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    progress("converting the tokenizer", 0.05)
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer.save_pretrained(folder)
        progress("converting the weights", 0.5)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
    except Exception as error:
        if load_errors.may_pass(error):
            raise
        raise SourceRefused(
            f"source {gguf.name!r} can't be converted ({type(error).__name__}): the file is cut "
            "off, or its architecture is not one that transformers reads from GGUF; get it again, "
            "or use a safetensors folder"
        ) from None
    # The weights are plain float32 now; saving is refused while the config says quantized.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    progress("writing safetensors", 0.9)
    model.save_pretrained(folder)
    _settle(folder)
    progress("converted", 1.0)


def _settle(folder: Path) -> None:
    """Write the weights through to the disk, and let the page cache forget them.

    A file that was just written lies in huge pages, and whoever maps it has them resident whole:
    a tied embedding table of which 2 MiB are in use took 30. Read anew, its pages are small ones.
    """
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            if hasattr(os, "posix_fadvise"):  # Linux
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    sys.exit(main())
