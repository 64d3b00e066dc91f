"""The command line ``llmtaskpool``.

Each command's module is imported when it is called, so that `decide` starts fast and needs
neither the worker's nor the simulator's extra.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup

_COMMANDS = {
    "local": "A pool on this machine, no cluster needed.",
    "submit": "Hand a task to a pool.",
    "wait": "Until tasks have ended.",
    "cancel": "Tasks that nobody wants any more.",
    "list": "The tasks of a pool.",
    "batch": "Files of requests: run one, list, look, cancel.",
    "dead-letters": "Tasks that took their workers along; replay them.",
    "decide": "The equation on numbers you give.",
    "operate": "The operator: pools on Kubernetes.",
    "explain": "Why a pool has the size that it has.",
    "top": "A live view of the pools of a cluster.",
    "calibrate": "A model's step times on this machine.",
    "simulate": "The law over a trace of requests.",
    "replay": "What another setting would have done.",
    "crd": "Print the CustomResourceDefinition.",
    "version": "Versions of what is installed.",
}
"""Each has a module of its name in commands/, with a function of its name (_ is written for -), or
a group of commands."""
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
_UsageError: Any = typer.BadParameter.__base__  # typer names only this one of its errors
BAD_INPUT = 2
INTERRUPTED = 130


class _Lazy(TyperGroup):
    """Lists all commands; imports one when it is called."""

    def list_commands(self, _: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return None
        try:
            name = cmd_name.replace("-", "_")
            module = importlib.import_module(f"llmtaskpool_operator.commands.{name}")
        except ModuleNotFoundError as missing:
            extra = _EXTRA.get(cmd_name, "all")
            sys.stderr.write(
                f"llmtaskpool {cmd_name}: {missing.name} is not installed; "
                f"install llmtaskpool[{extra}]\n"
            )
            raise SystemExit(BAD_INPUT) from None
        made = getattr(module, name)
        if isinstance(made, typer.Typer):
            return typer.main.get_command(made)
        one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        # Its options are the worker's: they are handed on as they are, --help too.
        handed_on = {"allow_extra_args": True, "ignore_unknown_options": True}
        one.command(
            cmd_name,
            short_help=_COMMANDS[cmd_name],
            context_settings=handed_on if cmd_name in _HANDED_ON else {},
            add_help_option=cmd_name not in _HANDED_ON,
        )(made)
        return typer.main.get_command(one)

    def format_commands(self, _: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


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


if __name__ == "__main__":
    main()
