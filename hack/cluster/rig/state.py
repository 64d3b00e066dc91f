"""A cluster's state folder: everything that it writes, and the file that says it is ours."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rig.errors import RigError

Kind = Literal["control-plane", "node", "kind"]
_RECORD = "rig.json"


@dataclass(frozen=True, slots=True)
class Record:
    """What `down` and `status` must know of a cluster. `slot` numbers a whole node's network."""

    kind: Kind
    server: str = ""
    slot: int | None = None


def claim(folder: Path, kind: Kind) -> Path:
    """Take an empty or absent folder for a new cluster; returns its real path.

    The record is written before anything starts, so that `down` works whenever `up` is killed.
    """
    folder = folder.expanduser().absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    if (folder / _RECORD).exists():
        raise RigError(
            f"a cluster is up in {folder}, or was not taken down",
            f"run `down --state {folder}` first, or choose another --state",
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RigError(f"{folder} is not an empty folder", "choose another --state")
    folder.mkdir(exist_ok=True, mode=0o700)
    write(folder, Record(kind))
    return folder


def write(folder: Path, record: Record) -> None:
    """Replace the record at once: a reader sees the old or the new one."""
    unfinished = folder / f".{_RECORD}"
    unfinished.write_text(json.dumps(asdict(record)))
    unfinished.rename(folder / _RECORD)


def read(folder: Path) -> Record | None:
    """The record, or None when no cluster lives there."""
    try:
        return Record(**json.loads((folder / _RECORD).read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise RigError(
            f"{folder / _RECORD} can't be read: {error}", "delete it and the folder by hand"
        ) from error


def discard(folder: Path) -> None:
    """Delete the folder of a cluster; a folder without our record is left alone."""
    if read(folder) is None:
        return
    for entry in folder.iterdir():
        if entry.name != _RECORD:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    shutil.rmtree(folder)  # the record goes last: a `down` that was killed can be run again
