"""`edgeseg calibrate`: a bundle and images to a bundle with int8 variants, their accuracy guarded."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import click

from edgeseg import bundle as bundles
from edgeseg import images as image_files
from edgeseg._files import write_atomic
from edgeseg._terminal import Finite, status
from edgeseg.bundle import Bundle
from edgeseg.calibration.datasets import Dataset, LayoutName, open_dataset
from edgeseg.errors import BackendMissing, BundleError, InputError
from edgeseg.loading import EMBEDDED
from edgeseg.types import Encoding

_LAYOUTS = ["auto", "folders", "camvid", "voc", "cityscapes", "ade20k"]
_EPILOG = """
\b
Example: edgeseg calibrate street.edgeseg --images camvid --split train -o street-int8.edgeseg
         edgeseg calibrate street-int8.edgeseg --method minmax -o again.edgeseg
"""


@dataclass(frozen=True, slots=True)
class _Source:
    """Where images come from, as the options say."""

    images: Path
    labels: Path | None
    layout: LayoutName
    split: str | None
    ignore: int | None

    def open(self, bundle: Bundle) -> Dataset:
        return open_dataset(
            self.images,
            self.labels,
            classes=bundle.manifest.classes,
            layout=self.layout,
            split=self.split,
            ignore=self.ignore,
        )


@click.command(epilog=_EPILOG)
@click.argument("bundle_path", metavar="[BUNDLE]", type=click.Path(path_type=Path), default=EMBEDDED)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="NAME.edgeseg",
              help="Bundle to write: all of BUNDLE and its int8 variants.")  # fmt: skip
@click.option("--images", type=click.Path(path_type=Path), metavar="DIR",
              help="Images to calibrate on, of the kind the camera sees; without, BUNDLE's earlier calibration "
                   "is used again.")  # fmt: skip
@click.option("--labels", type=click.Path(path_type=Path), metavar="DIR",
              help="Their labels, where they lie elsewhere: the guard then measures mIoU.")  # fmt: skip
@click.option(
    "--layout", type=click.Choice(_LAYOUTS), default="auto", show_default=True, help="How --images is laid out."
)
@click.option("--split", metavar="NAME", help="Which split of --images.")
@click.option("--ignore", type=click.IntRange(0, 255), metavar="N", help="A label value that means no class.")
@click.option("--count", type=click.IntRange(1), default=64, show_default=True, help="Images to calibrate on, at most.")
@click.option("--guard-images", "guard_folder", type=click.Path(path_type=Path), metavar="DIR",
              help="Images for the guard; others of --images if left out.")  # fmt: skip
@click.option("--guard-labels", type=click.Path(path_type=Path), metavar="DIR", help="Their labels.")
@click.option("--guard-split", metavar="NAME", help="Which split of --guard-images.")
@click.option(
    "--guard-count", type=click.IntRange(1), default=100, show_default=True, help="Images for the guard, at most."
)
@click.option("--no-guard", is_flag=True, help="Do not measure: write the default method.")
@click.option("--max-drop", type=Finite(0, 100), default=0.2, show_default=True,
              help="mIoU points that a variant may lose on the guard's labelled images.")  # fmt: skip
@click.option("--max-disagreement", type=Finite(0, 100), default=1.0, show_default=True,
              help="Percent of pixels that may change where there are no labels.")  # fmt: skip
@click.option("--budget", type=Finite(0), default=600, show_default=True, help="Seconds for the guard.")
@click.option(
    "--method", help="minmax, percentile-99.99, percentile-99.9, mse, entropy; the guard's choice if left out."
)
@click.option("--float-layers", metavar="NAME,NAME,...", help="Layers to leave in float in any case.")
@click.option("--per-tensor", is_flag=True, help="One weight scale per layer instead of one per channel.")
@click.option("--rounding", type=click.Choice(["second-order", "nearest"]), default="second-order", show_default=True,
              help="How weights become integers.")  # fmt: skip
@click.option("--no-bias-correction", is_flag=True, help="Leave the biases as they are.")
@click.option("--encoding", "encodings", multiple=True, type=click.Choice(["cpu", "tensorrt", "tensorrt_fp16"]),
              help="Write only these; all three if left out, or cpu where TensorRT would refuse the network. May be "
                   "repeated.")  # fmt: skip
@click.option("--output-stride", "strides", type=int, multiple=True,
              help="Only these strides; without --images, those calibrated before. May be repeated.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Draws the images.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.json", help="Write all that was measured.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw what each layer costs.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it is a bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the tables.")
def command(
    bundle_path: Path,
    output: Path,
    images: Path | None,
    labels: Path | None,
    layout: LayoutName,
    split: str | None,
    ignore: int | None,
    count: int,
    guard_folder: Path | None,
    guard_labels: Path | None,
    guard_split: str | None,
    guard_count: int,
    no_guard: bool,
    max_drop: float,
    max_disagreement: float,
    budget: float,
    method: str | None,
    float_layers: str | None,
    per_tensor: bool,
    rounding: str,
    no_bias_correction: bool,
    encodings: tuple[Encoding, ...],
    strides: tuple[int, ...],
    seed: int,
    report: Path | None,
    plot: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make int8 variants of a bundle: calibrated on images, guarded against losing accuracy.

    Without a BUNDLE of the embedded one. The guard measures every candidate on images that calibration did not see,
    chooses the rule for ranges, and leaves as few layers in float as the limit needs. Nothing is written where it
    cannot be kept.
    """
    try:
        from edgeseg.calibration import recipe, table
        from edgeseg.calibration import report as reports
        from edgeseg.calibration.judging import Limit
        from edgeseg.calibration.table import Rounding
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("onnx", "onnxruntime"):
            raise
        raise BackendMissing(f'calibrating needs the package {error.name}: pip install "edgeseg[calibrate]"') from error
    if plot is not None:
        image_files.check_suffix(plot)
    for file in (report, plot):
        if file is not None:
            recipe.check_writable(file)
            if file.is_dir():
                raise InputError(f"cannot write {file}: it is a folder")
    bundles.refuse_overwrite(output, overwrite=overwrite)
    recipe.check_writable(output, BundleError)
    bundle = Bundle.open(bundle_path, verify=False)
    chosen, guarding, taken = None, None, frozenset[str]()
    if images is not None:
        source = _Source(images, labels, layout, split, ignore)
        drawn = source.open(bundle)
        chosen = drawn.take(min(count, len(drawn)), seed)
        guarding, taken = drawn, frozenset(chosen.digests())
    elif labels is not None or split is not None:
        raise InputError("--labels and --split are about --images: give that too")
    elif per_tensor or rounding != "second-order" or no_bias_correction:
        raise InputError("--per-tensor, --rounding and --no-bias-correction need images to round the weights anew on")
    if guard_folder is None and (guard_labels is not None or guard_split is not None):
        raise InputError("--guard-labels and --guard-split are about --guard-images: give that too")
    if guard_folder is not None and no_guard:
        raise InputError("--guard-images and --no-guard exclude each other: leave one out")
    if guard_folder is not None:
        guarding = _Source(guard_folder, guard_labels, layout, guard_split, ignore).open(bundle)
        taken = taken or table.calibrated_on(bundle)
    guard, notes = None, []
    if guarding is not None and not no_guard:
        left = _others(guarding, taken)
        if len(left) < min(guard_count, len(guarding)):
            notes.append(
                f"the guard has {len(left)} images: the others of the {len(guarding)} in {guarding.source} are copies, "
                "or calibrated on"
            )
        part = left.take(min(guard_count, len(left)), seed)
        guard = recipe.Guard(part, Limit(max_drop, max_disagreement), budget)
    if plot is not None and guard is None:
        raise InputError("--plot draws what the guard measures: give it images, and leave out --no-guard")
    with status() as tell:
        found = recipe.calibrate(
            bundle_path,
            output,
            chosen,
            guard=guard,
            method=method,
            float_layers=[name.strip() for name in (float_layers or "").split(",") if name.strip()],
            rounding=Rounding(not per_tensor, rounding == "second-order", not no_bias_correction),
            encodings=encodings or None,
            output_strides=strides or None,
            seed=seed,
            overwrite=overwrite,
            tell=tell,
        )
    found = replace(found, notes=(*notes, *found.notes))
    text = json.dumps(reports.as_json(found), indent=2)
    for line in [text] if as_json else reports.lines(found):
        click.echo(line)
    if report is not None:
        write_atomic(report, text.encode() + b"\n", InputError)
    if plot is not None:
        from edgeseg.calibration import plot as plots

        image_files.write(plot, plots.draw(found.outcomes, found.bundle.path.name))


def _others(images: Dataset, taken: Collection[str]) -> Dataset:
    """The images that are none of those taken, by content, each once; raises InputError where none is left."""
    names = images.digests()
    kept = {name for digest, name in names.items() if digest not in taken}
    if not kept:
        copies = f" ({len(images) - len(names)} of its {len(images)} are copies)" if len(names) < len(images) else ""
        raise InputError(
            f"{images.source} has no image left for the guard: calibration uses all {len(names)}{copies}; give "
            "--guard-images, a smaller --count, or --no-guard"
        )
    return replace(images, samples=tuple(sample for sample in images.samples if sample.name in kept))
