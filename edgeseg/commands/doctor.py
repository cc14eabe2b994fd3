"""`edgeseg doctor`: what is here, what is not, and what to install."""

from __future__ import annotations

import dataclasses
import json
import platform

import click
import cv2
import numpy as np

import edgeseg
from edgeseg import decode, registry


@click.command(epilog="\b\nExample: edgeseg doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def command(as_json: bool) -> None:
    """Show every backend and device: version, availability, or what to install; and the active decode path."""
    found = [registry.status(name) for name in registry.names()]
    path = decode.active_path()
    host = {
        "edgeseg": edgeseg.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
    if as_json:
        report = {
            "host": host,
            "decode": dataclasses.asdict(path),
            "backends": [dataclasses.asdict(status) for status in found],
            "auto_order": registry.AUTO_ORDER,
        }
        click.echo(json.dumps(report, indent=2, sort_keys=True))
        return
    click.echo("  ".join(f"{name} {value}" for name, value in host.items()))
    click.echo(f"decode     {path.name}: {path.why}")
    for status in found:
        int8 = f"  int8 encodings: {', '.join(status.encodings)}" if status.encodings else ""
        click.echo(f"{status.name:<10} {status.version or 'not available: ' + status.reason}{int8}")
        for device in status.devices:
            mark = "yes" if device.available else "no"
            click.echo(
                f"  {device.name:<8} {mark:<4} {device.description}{': ' + device.reason if device.reason else ''}"
            )
    orders = "; ".join(f"{kind}: {', '.join(order)}" for kind, order in registry.AUTO_ORDER.items())
    click.echo(f"auto order {orders} (device auto is the cpu)")
