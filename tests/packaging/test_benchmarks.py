"""Benchmarks begin: each finds what it imports by itself, as whoever types its command does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOAD_ALL = """
import runpy, sys
from pathlib import Path
folder = Path(sys.argv[1])
before, path = set(sys.modules), list(sys.path)
for script in sorted(folder.glob("*.py")):
    if "torch" in (text := script.read_text()) or "saq" in text:
        continue  # seconds of loading, for nothing of ours
    sys.path[:] = [str(folder), *path[1:]]
    try:
        runpy.run_path(str(script), run_name="looked_at")
    except BaseException as error:
        print(f"{script.name}: {type(error).__name__}: {error}")
    ours = [name for name, one in sys.modules.items()
            if str(getattr(one, "__file__", None) or "").startswith(str(folder.parent) + "/")
            and "/site-packages/" not in one.__file__]
    for name in ours:
        del sys.modules[name]
"""


def test_each_benchmark_finds_what_it_imports() -> None:
    """One process looks at all but those that load torch, or other queues than ours."""
    looked = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, str(ROOT / "benchmarks")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (looked.returncode, looked.stdout) == (0, ""), looked.stderr[-2000:]
