"""runc for machines that keep a capability back: Docker's --privileged asks for all, and fails.

Docker asks the kernel which capabilities there are, not which this machine lets go, so "unable to
apply caps: operation not permitted" is all that comes of it. This asks for those that there are.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

_SCRIPT = """\
#!{python} -IS
import json, os, sys

WITHHELD = {withheld!r}


def without(path, *keys):
    with open(path) as file:
        process = found = json.load(file)
    for key in keys:
        process = process[key]
    for kind, names in (process.get("capabilities") or {{}}).items():
        process["capabilities"][kind] = [name for name in names if name not in WITHHELD]
    with open(path, "w") as file:
        json.dump(found, file)


arguments = sys.argv[1:]
for option, value in zip(arguments, arguments[1:]):
    if option == "--bundle":
        without(os.path.join(value, "config.json"), "process")
    elif option == "--process":
        without(value)
os.execv({runc!r}, [{runc!r}, *arguments])
"""


def withheld() -> list[str]:
    """Capabilities that the kernel knows and no process of this machine can have."""
    known = _lines("setpriv", "--list-caps")
    label = "Capability bounding set: "
    bounds = [line for line in _lines("setpriv", "--dump") if line.startswith(label)]
    held = bounds[0].removeprefix(label).split(",") if bounds else known
    return [f"CAP_{name.upper()}" for name in known if name not in held]


def _lines(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (util-linux)
    return done.stdout.splitlines()


def write(path: Path, names: list[str]) -> None:
    """Write a runtime that leaves those out."""
    runc = shutil.which("runc") or "/usr/sbin/runc"
    path.write_text(_SCRIPT.format(python=sys.executable, withheld=names, runc=runc))
    path.chmod(0o755)
