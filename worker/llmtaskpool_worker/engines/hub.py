"""Models of a hub: downloaded once into a cache that several workers may share. No torch.

The first of several processes downloads under a lock, the others wait and find it done. Only a
whole snapshot is ever used: huggingface_hub puts a file into it when all of the file is there, and
knows by the hub's list of files when all of them are. Failures that may pass are told as such
(the parent tries again with back-off); what another try can't mend is named at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from llmtaskpool_worker.engines import load_errors
from llmtaskpool_worker.engines.sources import Progress, SourceRefused, hub_files, hub_folder

CACHE_BYTES = "LLMTASKPOOL_CACHE_BYTES"
LOOK_SECONDS = 0.5
"""A process that waits for another's download looks so often whether it is done."""
SPARE_BYTES = 64 * 1024 * 1024
"""What must be free beside the files themselves."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


def download(
    name: str, revision: str, progress: Progress, *, sleep: Callable[[float], None] = time.sleep
) -> Path:
    """The whole snapshot of a repository, downloaded by one process for all.

    A commit that is there is used without asking the hub. While the hub fails, a branch that is
    there is used as it was last.

    Raises:
        SourceRefused: it can't be had; ``may_pass`` says whether another try may end well.
    """
    if _COMMIT.fullmatch(revision) and (there := _complete(name, revision)) is not None:
        return there
    folder = hub_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / f".{name.replace('/', '--')}.lock", progress, sleep):
        if _COMMIT.fullmatch(revision) and (there := _complete(name, revision)) is not None:
            return there  # by whoever had the lock
        progress("downloading", 0.0)
        try:
            return _fetch(name, revision)
        except SourceRefused:
            raise
        except Exception as error:
            refused = _refused(name, revision, error)
            away = refused.may_pass or _is_offline()
            if away and (there := _complete(name, revision)) is not None:
                return there
            raise refused from None


def _fetch(name: str, revision: str) -> Path:
    import huggingface_hub

    _clear_away(name)
    info = huggingface_hub.HfApi().model_info(name, revision=revision, files_metadata=True)
    files = info.siblings or ()
    wanted = hub_files(file.rfilename for file in files)
    missing = sum(
        file.size or 0
        for file in files
        if any(fnmatch(file.rfilename, pattern) for pattern in wanted)
        and not _is_there(name, info.sha or revision, file.rfilename)
    )
    _may_fit(f"hf://{name}@{revision}", missing)
    return Path(
        huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=wanted, cache_dir=hub_folder()
        )
    )


def _is_offline() -> bool:
    """Whether whoever runs this has said that there is no network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _is_there(name: str, commit: str, file: str) -> bool:
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(
        name, file, cache_dir=hub_folder(), revision=commit
    )
    return isinstance(found, str)


def _complete(name: str, revision: str) -> Path | None:
    """The snapshot, where all of its files are there."""
    from llmtaskpool_worker.engines.sources import from_hub

    try:
        return from_hub(name, revision)
    except SourceRefused:
        return None


def _clear_away(name: str) -> None:
    """Remove what downloads that were killed have left. Only for whoever has the lock."""
    blobs = hub_folder() / f"models--{name.replace('/', '--')}" / "blobs"
    for file in blobs.glob("*.incomplete"):
        with contextlib.suppress(OSError):
            file.unlink()


def _may_fit(source: str, missing: int) -> None:
    """Raises SourceRefused when the cache has no room for so many bytes."""
    folder = hub_folder()
    free = shutil.disk_usage(folder).free
    given = os.environ.get(CACHE_BYTES, "")
    if given.isdecimal():
        root = folder.parent
        used = sum(file.lstat().st_size for file in root.rglob("*") if file.is_file())
        free = min(free, int(given) - used)
    if missing and missing + SPARE_BYTES > free:
        raise SourceRefused(
            f"source {source!r} needs {_size(missing)} and the model cache has {_size(free)} free: "
            "give it more room (spec.cache) or remove models that are not used",
            may_pass=True,
        )


def _size(size: int) -> str:
    mebi = max(size, 0) / 1024**2
    return f"{mebi / 1024:.1f} GiB" if mebi >= 1024 else f"{mebi:.1f} MiB"


@contextlib.contextmanager
def _alone(path: Path, progress: Progress, sleep: Callable[[float], None]) -> Iterator[None]:
    """Hold the lock of one repository; whoever waits says so, once.

    A file system without locks is gone on with: two downloads don't spoil each other.
    """
    with path.open("w") as lock:
        waits = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waits:
                    progress("waiting for another worker's download", 0.0)
                waits = True
                sleep(LOOK_SECONDS)
            except OSError:
                break
            else:
                break
        yield


def _refused(name: str, revision: str, error: Exception) -> SourceRefused:
    """What went wrong, in a sentence with the remedy and without a path or a token."""
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    source = f"source 'hf://{name}@{revision}'"
    chain = _chain(error)
    status = next(
        (
            code
            for one in chain
            if isinstance(code := getattr(getattr(one, "response", None), "status_code", None), int)
        ),
        None,
    )
    told = f"{source}: the hub answered {status}"
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return SourceRefused(
            f"{source} is not in the model cache and HF_HUB_OFFLINE is set: bring it there, or "
            "unset HF_HUB_OFFLINE"
        )
    if any(isinstance(one, GatedRepoError) for one in chain) or status == 403:
        return SourceRefused(
            f"{told}: the model is gated or the token has no access: accept its terms on the hub, "
            "and give a token that may read it (tokenSecretRef, or HF_TOKEN)"
        )
    if any(isinstance(one, RevisionNotFoundError) for one in chain):
        return SourceRefused(f"{told}: there is no revision {revision}: correct what is after @")
    if any(isinstance(one, RepositoryNotFoundError) for one in chain) or status in (401, 404):
        return SourceRefused(
            f"{told}: there is no such model, or it is private: check its name, and give a token "
            "that may read it (tokenSecretRef, or HF_TOKEN)"
        )
    if status is not None:
        passing = status in _PASSING or status >= 500
        remedy = "it is tried again" if passing else "check HF_ENDPOINT and the model's name"
        return SourceRefused(f"{told}: {remedy}", may_pass=passing)
    if isinstance(error, ValueError):
        return SourceRefused(f"{source} is no name of a model: use hf://org/name@revision")
    local = next((one for one in chain if isinstance(one, OSError) and one.errno), None)
    if local is not None and not isinstance(local, ConnectionError | TimeoutError):
        return SourceRefused(f"{source}: {load_errors.told(local)}", may_pass=True)
    return SourceRefused(
        f"{source}: the hub can't be reached or broke off ({type(chain[-1]).__name__}): it is "
        "tried again; check the network, proxies and HF_ENDPOINT if it stays",
        may_pass=True,
    )


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it came of."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and len(found) < 10:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found
