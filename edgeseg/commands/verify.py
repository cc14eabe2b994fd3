"""`edgeseg verify`: a bundle's hashes and golden frames on every backend, and on labelled images what int8 loses."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edgeseg.bundle import Bundle
from edgeseg.calibration.certificate import MAX_DROP
from edgeseg.calibration.datasets import LayoutName, open_dataset
from edgeseg.calibration.verification import GoldenCheck, LossCheck, Verification, verify
from edgeseg.errors import InputError
from edgeseg.loading import EMBEDDED
from edgeseg.manifest import MIN_IMAGES, Certificate
from edgeseg.types import PRECISIONS, Precision

_LAYOUTS = ["auto", "folders", "camvid", "voc", "cityscapes", "ade20k"]
_CLASSES = 6


@click.command(epilog="\b\nExample: edgeseg verify street-int8.edgeseg --data camvid --split val")
@click.argument("bundle", type=click.Path(path_type=Path), default=EMBEDDED, metavar="[BUNDLE]")
@click.option("--backend", default="auto", show_default=True, help="Only this one; auto is every one that is here.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, gpu, npu, dla.0.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Only this one; all but bf16 if left out.")
@click.option("--data", metavar="DIR", help="Labelled images, not used for calibration: measure what int8 loses.")
@click.option("--labels", metavar="DIR", help="Their labels, where --data is only images.")
@click.option(
    "--layout", type=click.Choice(_LAYOUTS), default="auto", show_default=True, help="How --data is laid out."
)
@click.option("--split", metavar="NAME", help="Which split of --data; may be left out where there is one.")
@click.option("--ignore", type=click.IntRange(0, 255), metavar="N", help="A label value that means no class.")
@click.option("--max-drop", type=float, default=MAX_DROP, show_default=True, help="mIoU points that int8 may lose.")
@click.option("--certify", is_flag=True, help="Write what was measured into the bundle: precision auto goes by it.")
@click.option(
    "--threads",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="CPU threads of the network; 0: the runtime's choice.",
)
@click.option("--cache", type=click.Path(path_type=Path), metavar="DIR", help="Where engines are kept; the user's own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the tables.")
def command(
    bundle: Path,
    backend: str,
    device: str,
    precision: Precision | None,
    data: str | None,
    labels: str | None,
    layout: LayoutName,
    split: str | None,
    ignore: int | None,
    max_drop: float,
    certify: bool,
    threads: int,
    cache: Path | None,
    as_json: bool,
) -> int:
    """Check that a bundle is what it says: hashes, golden frames on each backend, certificates of int8.

    Without a BUNDLE the embedded one. Exit code 1 where anything is beyond its tolerance.
    """
    if data is None and (labels or split or certify or ignore is not None):
        raise InputError("--labels, --split, --ignore and --certify are about labelled images: name them with --data")
    images = None
    if data is not None:
        classes = Bundle.open(bundle, verify=False).manifest.classes
        images = open_dataset(data, labels, classes=classes, layout=layout, split=split, ignore=ignore)
    found = verify(
        bundle,
        images,
        backend=backend,
        device=device,
        precision=precision,
        max_drop=max_drop,
        certify=certify,
        threads=threads,
        cache="auto" if cache is None else cache,
    )
    if as_json:
        click.echo(json.dumps(_report(found), indent=2))
    else:
        _print(found, certify)
    return 0 if found.ok else 1


def _print(found: Verification, certify: bool) -> None:
    files = found.bundle.manifest.files.values()
    click.echo(f"{found.bundle.path}: {len(files)} files, {sum(i.bytes for i in files) / 1e6:.1f} MB, as hashed")
    click.echo()
    rows = [["variant", "encoding", "backend", "logits off by (limit)", "mask pixels equal (limit)", ""]]
    _table(rows + [_golden_row(check) for check in found.golden])
    for note in found.notes:
        click.echo(note)
    for loss in found.losses:
        click.echo()
        _print_loss(loss)
    if certify and found.losses:
        click.echo(f"\nwritten to {found.bundle.path}")


def _golden_row(check: GoldenCheck) -> list[str]:
    variant, worst = check.variant, check.worst
    named = [variant.file, variant.encoding + _computed(check), f"{check.backend} {check.device}"]
    if worst is None:
        return [*named, "", "", f"FAILED: {check.failure}"]
    limit = worst.tolerance
    logits = f"{worst.error:.4%} {f'({limit.logits:.2%})':>8}"
    mask = f"{worst.agreement:.4%} ({limit.mask_agreement:.2%})"
    return [*named, logits, mask, "ok" if check.ok else "FAILED"]


def _computed(check: GoldenCheck | LossCheck) -> str:
    return f" as {check.precision}" if check.precision != check.variant.precision else ""


def _print_loss(loss: LossCheck) -> None:
    where = f"{loss.variant.file}{_computed(loss)} on {loss.backend} {loss.device}"
    certificate = loss.measured
    if certificate is None:
        click.echo(f"{where}: FAILED: {loss.failure}")
        return
    count = certificate.images
    click.echo(
        f"{where}: mIoU {certificate.miou_fp32:.2f} -> {certificate.miou:.2f} on {count} image{'s' * (count != 1)}, "
        f"{_points(certificate.difference)} points (95 %: {_interval(certificate)}; "
        f"limit {_points(-certificate.limit)}) {'ok' if certificate.within_limit else 'FAILED'}"
    )
    if count < MIN_IMAGES:
        click.echo(f"  too few images to rely on: a certificate needs {MIN_IMAGES}")
    click.echo(
        f"  {certificate.agreement:.2%} of pixels as in fp32, least in {certificate.worst_image}: "
        f"{certificate.worst_agreement:.2%}"
    )
    lost = sorted((value, name) for name, value in certificate.iou_difference.items() if value < 0)[:_CLASSES]
    named = ", ".join(f"{name} {_points(value)}" for value, name in lost)
    click.echo(f"  IoU where most is lost: {named or 'nowhere'}")
    recorded = loss.recorded
    if recorded is not None:
        same = "the same" if recorded.data == certificate.data else "other"
        runtime = "" if recorded.runtime == certificate.runtime else f" with {recorded.runtime}"
        verdict = "" if loss.as_recorded else f", now beyond its interval ({_interval(recorded)}): FAILED"
        click.echo(
            f"  the bundle's certificate: {_points(recorded.difference)} points on {same} images{runtime}{verdict}"
        )


def _interval(certificate: Certificate) -> str:
    low, high = certificate.interval
    return f"{_points(low)} to {_points(high)}"


def _points(value: float) -> str:
    """A difference of mIoU, finer than the mIoU beside it; adding 0.0 makes -0.0 a zero."""
    return f"{round(value, 3) + 0.0:+.3f}"


def _table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for *cells, last in rows:
        aligned = [
            cell.rjust(width) if index >= 3 else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        click.echo("  ".join([*aligned, last]).rstrip())


def _report(found: Verification) -> dict[str, Any]:
    def named(check: GoldenCheck | LossCheck) -> dict[str, Any]:
        variant = check.variant
        return {
            "variant": variant.file,
            "output_stride": variant.output_stride,
            "precision": variant.precision,
            "executed": check.precision,
            "encoding": variant.encoding,
            "backend": check.backend,
            "device": check.device,
            "ok": check.ok,
            "failure": check.failure,
        }

    return {
        "bundle": str(found.bundle.path),
        "ok": found.ok,
        "golden": [named(check) | {"worst": _plain(check.worst)} for check in found.golden],
        "certificates": [
            named(loss) | {"measured": _plain(loss.measured), "recorded": _plain(loss.recorded)}
            for loss in found.losses
        ],
        "notes": list(found.notes),
    }


def _plain(record: Any) -> dict[str, Any] | None:
    if record is None:
        return None
    fields = dataclasses.asdict(record)  # JSON has no NaN
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in fields.items()
    }
