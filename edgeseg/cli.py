"""The command line: each command parses, calls, prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import click

import edgeseg
from edgeseg._edge import exit_code


class LazyGroup(click.Group):
    """Imports a command's module when it is asked for, so that `--help` loads nothing heavy."""

    commands_at: ClassVar = {
        "bench": "edgeseg.commands.bench",
        "cache": "edgeseg.commands.cache",
        "calibrate": "edgeseg.commands.calibrate",
        "compare": "edgeseg.commands.compare",
        "compile": "edgeseg.commands.compile",
        "doctor": "edgeseg.commands.doctor",
        "export": "edgeseg.commands.export",
        "inspect": "edgeseg.commands.inspect",
        "segment": "edgeseg.commands.segment",
        "tune": "edgeseg.commands.tune",
        "verify": "edgeseg.commands.verify",
    }

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands_at)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.commands_at:
            return None
        import importlib

        command: click.Command = importlib.import_module(self.commands_at[name]).command
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands_at and not args[0].startswith("-"):
            context.fail(f"No such command {args[0]!r}: choose one of {', '.join(self.commands_at)}")
        return super().resolve_command(context, args)


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nExample: edgeseg segment photo.jpg -o overlay.png",
)
@click.version_option(edgeseg.__version__, prog_name="edgeseg")
@click.pass_context
def cli(context: click.Context) -> None:
    """Semantic segmentation from a PyTorch checkpoint to a robot's camera loop."""
    if context.invoked_subcommand is None:  # click's no_args_is_help is an error since click 8.2
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. `edgeseg` and `python -m edgeseg` both come here."""
    return exit_code(cli, "edgeseg", arguments)
