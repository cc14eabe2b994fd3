"""Where errors leave: one line on stderr and an exit code, for the command line and for every `python -m` tool."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import click

from edgeseg.errors import EdgesegError


def exit_code(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command under this name: 0, or what it returns, 1 for every error, 130 for Ctrl-C."""
    with warnings.catch_warnings():
        warnings.showwarning = partial(_show_warning, name)
        try:
            result = command.main(arguments, prog_name=name, standalone_mode=False)
            return result if isinstance(result, int) else 0
        except click.ClickException as error:
            # click names its own types, not what to give
            told = error.format_message().replace("a valid integer range", "a whole number")
            return _fail(name, told.replace("a valid float range", "a number"))
        except EdgesegError as error:
            return _fail(name, str(error))
        except ModuleNotFoundError as error:
            if error.name != "cv2":
                raise
            return _fail(name, 'OpenCV (cv2) is missing: pip install "edgeseg[openvino]", or opencv-python-headless')
        except OSError as error:  # a closed pipe click has dealt with
            if error.filename is not None:
                return _fail(name, f"{error.filename}: {error.strerror}")
            if error.errno is None:  # a library's own, not the system's
                return _fail(name, str(error))
            with contextlib.suppress(OSError):  # what is left in the buffer would fail once more when Python ends
                sys.stdout.close()
            return _fail(name, f"cannot write the output: {error.strerror or error}")
        except (click.Abort, KeyboardInterrupt):
            click.echo(f"{name}: interrupted", err=True)
            return 130


def _fail(name: str, message: str) -> int:
    click.echo(f"{name}: " + " ".join(message.split()), err=True)
    return 1


def _show_warning(name: str, message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"{name}: warning: " + " ".join(str(message).split()), err=True)
