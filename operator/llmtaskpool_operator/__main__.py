"""The command line ``llmtaskpool``.

Each command's module is imported when it is called, so that `decide` starts fast and needs
neither the worker's nor the simulator's extra.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

_COMMANDS = {
    "local": ("llmtaskpool_operator.local_cli", "A pool on this machine, no cluster needed."),
    "decide": ("llmtaskpool_operator.decide_cli", "The equation on numbers you give."),
    "operate": ("llmtaskpool_operator.operate_cli", "The operator: pools on Kubernetes."),
    "explain": ("llmtaskpool_operator.explain_cli", "Why a pool has the size that it has."),
    "top": ("llmtaskpool_operator.top_cli", "A live view of the pools of a cluster."),
    "calibrate": ("llmtaskpool_operator.calibrate_cli", "A model's step times on this machine."),
    "simulate": ("llmtaskpool_operator.simulate_cli", "The law over a trace of requests."),
    "replay": ("llmtaskpool_operator.replay_cli", "What another setting would have done."),
    "crd": ("llmtaskpool_operator.__main__", "Print the CustomResourceDefinition."),
    "version": ("llmtaskpool_operator.__main__", "Versions of what is installed."),
}
_EXTRA = {
    "local": "worker",
    "calibrate": "worker",
    "operate": "operator",
    "explain": "operator",
    "top": "operator",
    "simulate": "simulate",
    "replay": "simulate",
}
_HANDED_ON = ("calibrate",)
_PIECES = ("torch", "transformers", "kopf", "kubernetes", "pydantic", "starlette")
_UsageError: Any = typer.BadParameter.__base__  # typer names only this one of its errors
BAD_INPUT = 2
INTERRUPTED = 130


class _Lazy(TyperGroup):
    """Lists all commands; imports one when it is called."""

    def list_commands(self, _: Any) -> list[str]:
        return [name for name in _COMMANDS if _offered(name)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        module, summary = _COMMANDS[cmd_name]
        try:
            function = getattr(importlib.import_module(module), cmd_name)
        except ModuleNotFoundError as missing:
            extra = _EXTRA.get(cmd_name, "all")
            sys.stderr.write(
                f"llmtaskpool {cmd_name}: {missing.name} is not installed; "
                f"install llmtaskpool[{extra}]\n"
            )
            raise SystemExit(BAD_INPUT) from None
        one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        # Its options are the worker's: they are handed on as they are, --help too.
        handed_on = {"allow_extra_args": True, "ignore_unknown_options": True}
        one.command(
            cmd_name,
            short_help=summary,
            context_settings=handed_on if cmd_name in _HANDED_ON else {},
            add_help_option=cmd_name not in _HANDED_ON,
        )(function)
        return typer.main.get_command(one)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])


app = typer.Typer(
    cls=_Lazy,
    add_completion=False,
    no_args_is_help=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _pools(ctx: typer.Context) -> None:
    """Pools of workers for prioritized AI tasks: on this machine, on Kubernetes, simulated."""
    if ctx.invoked_subcommand is None:
        sys.stdout.write(ctx.get_help() + "\n")


def crd(
    reference: Annotated[
        bool, typer.Option("--reference", help="Print docs/reference.md instead: every field.")
    ] = False,
) -> None:
    """Print the CustomResourceDefinition; crds/llmtaskpool.yaml is this."""
    if reference:
        from llmtaskpool_operator.reference import as_markdown as text
    else:
        from llmtaskpool_operator.crdgen import as_yaml as text

    sys.stdout.write(text())


def version(
    output: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Versions of llmtaskpool and of the pieces that are installed beside it."""
    if output not in ("text", "json"):
        sys.stderr.write(f"llmtaskpool version: --output {output!r}: use text or json\n")
        raise typer.Exit(BAD_INPUT)
    found: dict[str, Any] = {"llmtaskpool": metadata.version("llmtaskpool")}
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    for name in _PIECES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if output == "json":
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        for name, is_version in found.items():
            sys.stdout.write(f"{name:13} {is_version or 'not installed'}\n")


def main() -> None:
    """Run the command line; user errors end with one line and exit code 2."""
    try:
        sys.exit(app(prog_name="llmtaskpool", standalone_mode=False) or 0)
    except _UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "llmtaskpool"
        sys.stderr.write(f"{where}: {error.format_message()}\n")
        sys.exit(BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)


def _offered(name: str) -> bool:
    return importlib.util.find_spec(_COMMANDS[name][0]) is not None


if __name__ == "__main__":
    main()
