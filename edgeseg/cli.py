"""The command line: each command parses, calls, prints. Errors become one line and exit code 1."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import ClassVar

import click

import edgeseg
from edgeseg.errors import EdgesegError


class LazyGroup(click.Group):
    """Imports a command's module when it is asked for, so that `--help` loads nothing heavy."""

    commands_at: ClassVar = {
        "doctor": "edgeseg.commands.doctor",
        "export": "edgeseg.commands.export",
        "segment": "edgeseg.commands.segment",
    }

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands_at)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.commands_at:
            return None
        import importlib

        command: click.Command = importlib.import_module(self.commands_at[name]).command
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(edgeseg.__version__, prog_name="edgeseg")
def cli() -> None:
    """Semantic segmentation from a PyTorch checkpoint to a robot's camera loop.

    \b
    Example: edgeseg segment photo.jpg -o overlay.png
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. `edgeseg` and `python -m edgeseg` both come here."""
    try:
        result = cli.main(arguments, prog_name="edgeseg", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        return _fail(error.format_message())
    except EdgesegError as error:
        return _fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("edgeseg: interrupted", err=True)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        return 141


def _fail(message: str) -> int:
    click.echo("edgeseg: " + " ".join(message.split()), err=True)
    return 1
