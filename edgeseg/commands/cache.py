"""`edgeseg cache`: what backends compiled and kept, and getting rid of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from edgeseg import caching, registry
from edgeseg._files import cache_home
from edgeseg._terminal import Finite
from edgeseg.caching import CacheEntry
from edgeseg.errors import InputError

_DAY_S = 86400

_CACHE = click.option(
    "--cache", type=click.Path(path_type=Path), metavar="DIR", help="The cache; the user's own if left out."
)


@click.group(invoke_without_command=True, epilog="\b\nExample: edgeseg cache list")
@click.pass_context
def command(context: click.Context) -> None:
    """List or clear the networks that backends compiled and keep, so that they open fast the next time."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command("list", epilog="\b\nExample: edgeseg cache list")
@_CACHE
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def list_command(cache: Path | None, as_json: bool) -> None:
    """Show every compiled network: backend, model, what it is for, size, and when it was last used."""
    folder = _folder(cache)
    found = sorted(caching.entries(folder), key=lambda entry: -entry.used)
    total = sum(entry.bytes for entry in found)
    if as_json:
        report = {
            "cache": str(folder),
            "bytes": total,
            "limit_bytes": caching.limit_bytes(),
            "entries": [_report(entry) for entry in found],
        }
        click.echo(json.dumps(report, indent=2))
        return
    rows = [["backend", "model", "for", "size", "last used"]]
    rows += [[entry.backend, _model(entry), _purpose(entry), _mb(entry.bytes), _when(entry.used)] for entry in found]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows if found else []:
        cells = [cell.rjust(width) if column == 3 else cell.ljust(width)
                 for column, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        click.echo("  ".join(cells).rstrip())
    click.echo(f"{folder}: {_count(len(found))}, {_mb(total)} (limit {_mb(caching.limit_bytes())})")


@command.command("clear", epilog="\b\nExample: edgeseg cache clear --older-than 30")
@_CACHE
@click.option("--backend", metavar="NAME", help="Only what this backend compiled.")
@click.option("--older-than", type=Finite(min=0), metavar="DAYS", help="Only what was not used for so many days.")
def clear_command(cache: Path | None, backend: str | None, older_than: float | None) -> int:
    """Remove compiled networks; they are compiled again when they are needed.

    Files of other names than edgeseg gives are left alone. Exit code 1 where something could not be removed.
    """
    folder = _folder(cache)
    if backend is not None:
        known = dict.fromkeys([*registry.names(), *(entry.backend for entry in caching.entries(folder))])
        if backend not in known:
            raise InputError(f"unknown backend {backend!r}: choose one of {', '.join(known)}")
    done = caching.clear(folder, backend, (older_than or 0) * _DAY_S)
    click.echo(f"{folder}: removed {_count(len(done.removed))}, {_mb(done.bytes)}")
    for entry in done.kept:
        click.echo(f"kept {entry.path}: another process is at work on it, or it may not be removed", err=True)
    return 1 if done.kept else 0


def _folder(cache: Path | None) -> Path:
    if cache is None:
        return cache_home()
    if not cache.exists():
        raise InputError(f"no cache at {cache}")
    return cache


def _model(entry: CacheEntry) -> str:
    if entry.model == "timing":
        return "(measured by builds)"
    if all(path.name.endswith(".half.onnx") for path in entry.files):
        return f"(a graph written in float16) ({entry.model[:8]})"
    file, bundle = entry.facts.get("file", ""), entry.facts.get("bundle", "")
    return " ".join(filter(None, (file, f"of {bundle}" * bool(bundle), f"({entry.model[:8]})")))


def _purpose(entry: CacheEntry) -> str:
    """Targets or device, and the precision; the rest of the facts is in the JSON."""
    place = ", ".join(entry.targets) or entry.facts.get("gpu") or entry.facts.get("device", "")
    dla = entry.facts.get("dla", "none")
    return ", ".join(filter(None, (place, f"DLA {dla}" * (dla != "none"), entry.facts.get("precision", ""))))


def _report(entry: CacheEntry) -> dict[str, Any]:
    return {
        "backend": entry.backend,
        "model": entry.model,
        "path": str(entry.path),
        "bytes": entry.bytes,
        "used": entry.used,
        "targets": list(entry.targets),
        "facts": dict(entry.facts),
    }


def _count(number: int) -> str:
    return f"{number} compiled network{'s' * (number != 1)}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _when(used: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
    except (OverflowError, ValueError, OSError):  # a clock that was set wrong
        return "unknown"
