"""From the text `package.module:factory` and NAME=VALUE settings to a torch module."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
from collections.abc import Sequence
from typing import Any

from edgeseg.errors import EdgesegError, ExportError, InputError


def make(target: str, settings: Sequence[str] = (), num_classes: int | None = None) -> Any:
    """Import the factory, modules in the current folder included, call it with the settings, return its module.

    Values are JSON where they parse as JSON, Python literals where they parse as those (False, None, 'x'), else text.
    `num_classes` is filled in where the factory takes it and no setting did. Raises InputError where there is no such
    factory or it returns something else than a torch module, ExportError where calling it fails.
    """
    factory = _find(*split(target))
    arguments = dict(_setting(text) for text in settings)
    if num_classes is not None and _takes(factory, "num_classes"):
        arguments.setdefault("num_classes", num_classes)
    try:
        model = factory(**arguments)
    except EdgesegError:
        raise
    except TypeError as error:
        raise ExportError(f"cannot call {target}: {error}; give its arguments with --set NAME=VALUE") from error
    except Exception as error:  # somebody else's code, which may raise anything
        raise ExportError(f"{target} failed with {type(error).__name__}: {error}") from error
    torch = sys.modules.get("torch")  # where nobody has imported it, nobody has made a module either
    if torch is None or not isinstance(model, torch.nn.Module):
        raise InputError(f"{target} returns {type(model).__name__}: a torch.nn.Module is needed")
    return model


def split(target: str) -> tuple[str, str]:
    """`package.module:factory` in its two parts; raises InputError where it has not two."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise InputError(f"{target!r} is not PACKAGE.MODULE:FACTORY: name a function, as edgeseg.models:deeplabv3")
    return module_name, name


def _find(module_name: str, name: str) -> Any:
    sys.path.insert(0, "")  # as `python -m` finds modules
    try:
        return getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        if error.name in ("torch", "safetensors"):
            raise EdgesegError(f'this needs the package {error.name}: pip install "edgeseg[export]"') from error
        raise InputError(f"cannot import {module_name}: no module {error.name!r}") from error
    except AttributeError as error:
        raise InputError(f"module {module_name} has no {name!r}: name a function in it") from error
    except Exception as error:  # the module's own top level
        raise ExportError(f"importing {module_name} failed with {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")


def _takes(factory: Any, parameter: str) -> bool:
    try:
        return parameter in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"--set {text!r} is not NAME=VALUE")
    for parse in (json.loads, ast.literal_eval):
        try:
            return name, parse(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: nested beyond measure
            continue
    return name, value
