"""`edgeseg compare`: two benchmark runs, configuration by configuration, and gates for CI."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import click

from edgeseg.benchmarks.compare import Change, Comparison, Gate, Row, Verdict, compare, judge
from edgeseg.benchmarks.results import Results, read
from edgeseg.errors import InputError


class _GateType(click.ParamType):  # type: ignore[type-arg]
    name = "GATE"

    def convert(self, value: str | Gate, param: click.Parameter | None, context: click.Context | None) -> Gate:
        try:
            return value if isinstance(value, Gate) else Gate.read(value)
        except InputError as error:
            self.fail(str(error), param, context)


@click.command(
    epilog="\b\nExample: edgeseg compare before.json after.json --fail-if slower-than=5% --fail-if miou-drop=0.3"
)
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--fail-if",
    "gates",
    type=_GateType(),
    multiple=True,
    help="slower-than=5% (the whole frame) or miou-drop=0.3 (points): exit code 1 where the 95 % interval lies beyond "
    "it. May be repeated.",
)
@click.option("--anyway", is_flag=True, help="Compare also where hosts, frames or labelled images differ.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the tables.")
def command(before: Path, after: Path, gates: tuple[Gate, ...], anyway: bool, as_json: bool) -> int:
    """Say what changed from one run of `edgeseg bench --json` to another, and how sure that is.

    Refuses runs on unlike hosts, frames or labelled images. A difference is only called one where its 95 % interval
    excludes none, and no ratio's interval is narrower than what either run says it can tell.
    """
    names, runs = (str(before), str(after)), (read(before), read(after))
    found = compare(*runs, names=names, anyway=anyway)
    verdicts = judge(found, gates)
    failed = [one for one in verdicts if one.outcome == "not held"]
    if as_json:
        click.echo(json.dumps(_report(found, verdicts), indent=2))
        for one in failed:
            click.echo(f"edgeseg: {one}", err=True)
    else:
        _print(found, names, runs, verdicts)
    return 1 if failed else 0


def _print(found: Comparison, names: Sequence[str], runs: Sequence[Results], verdicts: Sequence[Verdict]) -> None:
    for which, name, run in zip(("before", "after"), names, runs, strict=True):
        height, width = run.input_size
        click.echo(f"{which:<7} {name}: {run.bundle} {run.bundle_digest[:12]}, {height}x{width}, {run.began}")
    for title, kind in (("whole frame, ms", "frame"), ("runtime alone, ms", "network"), ("mIoU", "miou")):
        pairs = [(row, getattr(row, kind)) for row in found.rows]
        rows = [_cells(row, change) for row, change in pairs if change is not None]
        if rows:
            click.echo()
            _table([[title, "before", "after", "points" if kind == "miou" else "ratio", "95 %", ""], *rows])
    if failures := [row for row in found.rows if row.failure]:
        click.echo()
        for row in failures:
            click.echo(f"{row.configuration.name} no longer runs: {row.failure}")
    if found.notes:
        click.echo()
        for note in found.notes:
            click.echo(f"note: {note}")
    if verdicts:
        click.echo()
        for verdict in verdicts:
            click.echo(f"gate {verdict}")


def _cells(row: Row, change: Change) -> list[str]:
    low, high = change.interval
    if change.nothing:  # a ratio of times
        figures = [f"{change.before / 1e6:.2f}", f"{change.after / 1e6:.2f}", f"{change.change:.3f}"]
        interval, verdict = f"{low:.3f} to {high:.3f}", "slower" if change.change > 1 else "faster"
    else:
        figures = [f"{change.before:.2f}", f"{change.after:.2f}", _points(change.change)]
        interval, verdict = f"{_points(low)} to {_points(high)}", "better" if change.change > 0 else "worse"
    return [row.configuration.name, *figures, interval, verdict if change.certain else "no difference told"]


def _points(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # adding 0.0 makes -0.0 a zero


def _table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for name, *figures, last in rows:
        right = [cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True)]
        click.echo("  ".join([name.ljust(widths[0]), *right, last]).rstrip())


def _report(found: Comparison, verdicts: Sequence[Verdict]) -> dict[str, object]:
    def plain(change: Change | None) -> dict[str, object] | None:
        return None if change is None else dataclasses.asdict(change) | {"certain": change.certain}

    failed = [str(one) for one in verdicts if one.outcome == "not held"]
    return {
        "ok": not failed,
        "gates": [str(one.gate) for one in verdicts],
        "verdicts": [{"gate": str(one.gate), "outcome": one.outcome, "why": one.why} for one in verdicts],
        "failed": failed,
        "configurations": [
            {
                "name": row.configuration.name,
                **dataclasses.asdict(row.configuration),
                "frame_ns": plain(row.frame),
                "network_ns": plain(row.network),
                "miou": plain(row.miou),
                "paired": row.paired,
                "failure": row.failure,
            }
            for row in found.rows
        ],
        "notes": list(found.notes),
    }
