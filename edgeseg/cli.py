"""The command line: each command parses, calls, prints. Errors become one line and exit code 1."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import click

import edgeseg
from edgeseg.errors import EdgesegError


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
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            result = cli.main(arguments, prog_name="edgeseg", standalone_mode=False)
            return result if isinstance(result, int) else 0
        except click.ClickException as error:
            return _fail(error.format_message())
        except EdgesegError as error:
            return _fail(str(error))
        except ModuleNotFoundError as error:
            if error.name != "cv2":
                raise
            return _fail('OpenCV (cv2) is missing: pip install "edgeseg[openvino]", or opencv-python-headless')
        except OSError as error:  # a closed pipe click has dealt with
            if error.filename is not None:
                return _fail(f"{error.filename}: {error.strerror}")
            if error.errno is None:  # a library's own, not the system's
                return _fail(str(error))
            with contextlib.suppress(OSError):  # what is left in the buffer would fail once more when Python ends
                sys.stdout.close()
            return _fail(f"cannot write the output: {error.strerror or error}")
        except (click.Abort, KeyboardInterrupt):
            click.echo("edgeseg: interrupted", err=True)
            return 130


def _fail(message: str) -> int:
    click.echo("edgeseg: " + " ".join(message.split()), err=True)
    return 1


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo("edgeseg: warning: " + " ".join(str(message).split()), err=True)
