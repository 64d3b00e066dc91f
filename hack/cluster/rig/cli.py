"""The command line: up, down, status, build, load-image."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rig import build as builds
from rig import pins, processes, state, teardown
from rig.control_plane import ControlPlane, Options, control_plane
from rig.errors import RigError

app = typer.Typer(
    help="A real single-node Kubernetes on this machine, built from pinned sources.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_out = Console()
_err = Console(stderr=True)


class Output(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


def _default_state() -> Path:
    return builds.cache_folder() / "cluster"


StateOption = Annotated[
    Path,
    typer.Option(
        "--state",
        default_factory=_default_state,
        show_default="~/.cache/llmtaskpool/rig/cluster",
        help="The cluster's folder. Clusters with different folders live side by side.",
    ),
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="text or json")]


def _say(line: str) -> None:
    _err.print(line, highlight=False, soft_wrap=True, markup=False)


@app.command()
def build(
    control_plane: Annotated[
        bool, typer.Option("--control-plane", help="Only what tests/cluster needs.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Only this binary.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Build the binaries that are not in the cache yet: a line for each, with its time."""
    wanted = _named(only) if only else list(pins.CONTROL_PLANE if control_plane else pins.ALL)
    cache = builds.cache_folder()
    builds.build(wanted, cache, _say)
    if not only and not control_plane:
        builds.fetch_packages(cache)
    paths = {binary.name: str(builds.path_of(binary, cache)) for binary in wanted}
    if output is Output.JSON:
        _out.print_json(json.dumps(paths))
        return
    table = Table("binary", "version", "path")
    for binary in wanted:
        table.add_row(binary.name, binary.module.version, paths[binary.name])
    _out.print(table)


def _named(names: list[str]) -> list[pins.Binary]:
    known = {binary.name: binary for binary in pins.ALL + pins.OPTIONAL}
    for name in names:
        if name not in known:
            raise RigError(f"--only {name}: no such binary", f"one of {', '.join(known)}")
    return [known[name] for name in names]


@app.command()
def up(
    state_dir: StateOption,
    only_control_plane: Annotated[
        bool,
        typer.Option("--control-plane", help="etcd, API server and controllers; needs no root."),
    ] = False,
    scheduler: Annotated[
        bool, typer.Option("--scheduler", help="With --control-plane: kube-scheduler too.")
    ] = False,
    fake_nodes: Annotated[
        int,
        typer.Option("--fake-nodes", min=0, help="With --control-plane: nodes played by kwok."),
    ] = 0,
    audit: Annotated[bool, typer.Option("--audit", help="Log every API request.")] = False,
    port: Annotated[
        int | None, typer.Option("--port", help="The API server's port with --control-plane.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Bring up a whole node, or with --control-plane an API server with its controllers."""
    if only_control_plane:
        options = Options(scheduler=scheduler, fake_nodes=fake_nodes, audit=audit)
        plane = control_plane(state_dir, options, port=port, die_with_parent=False)
    else:
        from rig.node import node

        if port is not None or scheduler or fake_nodes:
            raise RigError(
                "--port, --scheduler and --fake-nodes are for --control-plane",
                "add --control-plane, or leave them out: a node has a scheduler and own addresses",
            )
        plane = node(state_dir, audit=audit, die_with_parent=False).plane
    _print_cluster(plane, output)


def _print_cluster(plane: ControlPlane, output: Output) -> None:
    found = {"kubeconfig": str(plane.kubeconfig), "server": plane.server}
    found["state"] = str(plane.state_dir)
    if output is Output.JSON:
        _out.print_json(json.dumps(found))
        return
    _say(f"up: {plane.server}; take it down with `down --state {plane.state_dir}`")
    _out.print(f"export KUBECONFIG={plane.kubeconfig}", highlight=False, soft_wrap=True)


@app.command()
def down(state_dir: StateOption, output: OutputOption = Output.TEXT) -> None:
    """End a cluster and remove every trace of it, also after a crash of `up`."""
    removed = teardown.take_down(state_dir)
    if output is Output.JSON:
        _out.print_json(json.dumps({"state": str(state_dir), "removed": removed}))
    else:
        _say(", ".join(removed) + " removed" if removed else f"nothing to remove in {state_dir}")


@app.command()
def status(state_dir: StateOption, output: OutputOption = Output.TEXT) -> None:
    """What runs, in one table. Exit code 1 when nothing does."""
    folder = state_dir.expanduser().resolve()
    record = state.read(folder)
    found = [m for m in processes.members(folder) if m.program not in processes.WRAPPERS]
    if output is Output.JSON:
        rows = [
            {
                "role": m.role,
                "program": m.program,
                "pid": m.pid,
                "state": m.state,
                "residentBytes": m.resident,
            }
            for m in found
        ]
        server = record.server if record else None
        _out.print_json(json.dumps({"state": str(folder), "server": server, "processes": rows}))
    else:
        table = Table("role", "program", "pid", "state", "memory", title=_title(folder, record))
        for member in found:
            memory = f"{member.resident / 2**20:.0f} MiB"
            table.add_row(member.role, member.program, str(member.pid), member.state, memory)
        _out.print(table)
    if not found:
        raise typer.Exit(1)


def _title(folder: Path, record: state.Record | None) -> str:
    return f"{record.kind} {record.server} in {folder}" if record else f"no cluster in {folder}"


@app.command("load-image")
def load_image(archive: Path, state_dir: StateOption) -> None:
    """Give a node the images in a docker or OCI archive (`docker save`, `buildah push`)."""
    from rig.node import load_image as load

    for name in load(state_dir.expanduser().resolve(), archive):
        _say(f"loaded {name}")


def main() -> None:
    """Run the command line; what can't be done is said in two lines, with exit code 2."""
    try:
        app(standalone_mode=True)
    except RigError as error:
        _say(f"error: {error}")
        raise SystemExit(2) from None
    except OSError as error:
        _say(f"error: {error.filename}: {error.strerror}\n  remedy: see its owner and free space")
        raise SystemExit(2) from None
