"""The report's numbers and sentences in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from edgeseg.benchmarks.report_rows import Pick, Row, behind
from edgeseg.benchmarks.results import Noise, Results

_THIN = "\u202f"
"""A narrow space that does not break, between a number and its unit."""
FAILED = "All else in this report is about the others."
GRID = "Latency counts everything between the raw frame and the mask at the frame's own size."
LATENCY = "Bars reach the median; the line goes on to p90 and p99 (below 100 frames the longest)."
PICTURES = "What differs is marked over the darkened frame; pixels without a label do not count."
RATES = (
    "Age is how long ago its frame was taken when a result is there, milliseconds; a frame is missed where a newer one "
    "came before the segmenter was free."
)
START = (
    "Milliseconds before the first mask, each in a process of its own; load has an empty cache, and checks the golden "
    "frame."
)


def ms(value: float | None) -> str:
    """Milliseconds to three digits, without the unit; a dash for None."""
    if value is None:
        return "–"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f}".replace(",", _THIN)


def with_unit(value: float) -> str:
    """Milliseconds, from ten thousand on seconds."""
    return f"{ms(value)}{_THIN}ms" if value < 9999.5 else f"{value / 1000:.1f}{_THIN}s"


def percent(share: float, digits: int = 0) -> str:
    """A share of 1 as percent."""
    return f"{100 * share:.{digits}f}{_THIN}%"


def size(count: int) -> str:
    """Bytes."""
    return f"{count / 1e9:.2f}{_THIN}GB" if count >= 999_500_000 else f"{count / 1e6:.1f}{_THIN}MB"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}".replace(",", _THIN)


def when(began: str) -> str:
    """A time as written by `datetime.isoformat` in words, any other text as it is."""
    try:
        return datetime.fromisoformat(began).strftime("%d %B %Y, %H:%M %Z").strip()
    except ValueError:
        return began


def title(results: Results, pick: Pick | None) -> str:
    """The first sentence: what to choose."""
    if pick is None:
        return "Nothing could be measured."
    name = f"{pick.row.series} at output stride {pick.row.stride}"
    if len(results.measurements) == 1:
        return f"{name} takes {with_unit(pick.row.frame.p50)} a frame{_points(pick.row)}."
    if pick.limit is None:
        first = "Among the fastest" if pick.equals else "The fastest"
        return f"{first} is {name}: {with_unit(pick.row.frame.p50)} a frame."
    return f"For {limit(pick)} a frame choose {name}: {with_unit(pick.row.frame.p50)}{_points(pick.row)}."


def limit(pick: Pick) -> str:
    """Of a pick that has one; above the last one's nothing better is to be had."""
    asked = f"{pick.limit}{_THIN}ms"
    return f"{asked} or more" if pick.last else f"at most {asked}"


def subtitle(results: Results, row: Row | None) -> str:
    """What the first sentence's numbers are of."""
    frames = f"{results.frames.height}×{results.frames.width}"
    if row is None:
        return "Every configuration failed; the reasons are below."
    words = f"The median from a raw {frames} frame to its mask at the same size"
    words += f"; one frame in a hundred takes longer than {with_unit(row.frame.p99)}." if row.frame.p99 else "."
    found = row.accuracy
    if found is None:
        return words + " Accuracy was not measured: give labelled images with --data."
    low, high = found.interval
    return words + f" Accuracy is from {plural(found.images, 'labelled image')} (95{_THIN}%: {low:.1f} to {high:.1f})."


def pick_words(pick: Pick) -> list[str]:
    """What is to be known of a choice beside its numbers."""
    words, late = [], pick.row.frame.p99
    if late is not None:
        over = pick.limit is not None and not pick.last and late > pick.limit
        words.append(f"p99 {with_unit(late)}" + over * ", over the limit")
    if pick.equals:
        words.append(f"No different in this run: {'; '.join(row.label for row in pick.equals)}")
    return words


def noise(found: Noise) -> tuple[str, str]:
    """The verdict on the run's own quality: in two words, and in a sentence."""
    claim = percent(found.claim, 1)
    if found.noisy:
        return "Noisy run", f"Take its latencies as rough: less than {claim} apart is no difference."
    return "Quiet run", f"It can tell differences of {claim} and more."


def chart(rows: Sequence[Row], measured: int) -> str:
    """How to read the chart, and how sure its heights are; `measured` counts the rows without accuracy too."""
    words = "Up and left is better; below the stairs something is as fast and more accurate."
    widths = [high - low for row in rows if row.accuracy for low, high in (row.accuracy.interval,)]
    if widths:
        words += (
            f" Heights are sure to about ±{sum(widths) / len(widths) / 2:.1f} points for other images of the kind; "
            "all configurations saw the same ones, so their differences are surer"
        )
        errors = [high - low for found in behind(rows) if found for low, high in (found[1],) if high > low]
        words += f", to about ±{sum(errors) / len(errors) / 2:.2f}." if errors else "."
    if measured > len(rows):
        words += f" Without a known accuracy {measured - len(rows)} of {measured} configurations are not here."
    return words


def stages(row: Row) -> str:
    """Where one configuration's time goes."""
    share = percent(row.network / row.frame.p50)
    words = f"In {row.label}, the network takes {share} of the whole frame"
    if row.ratio:
        words += f"; the frame takes {row.ratio:.2f} times what the runtime takes alone on the same graph"
    return words + "."


def steadiness(rows: Sequence[Row]) -> str:
    """How steady the frames are, and how to read the panels."""
    late = sorted((row.frame.jitter / row.frame.p50, row.label) for row in rows if row.frame.jitter is not None)
    words = " and ".join(f"{percent(share)} in {label}" for share, label in dict.fromkeys((*late[:1], *late[-1:])))
    said = f"One frame in a hundred is later than the median by more than {words}."
    return (
        f"{said if late else 'Too few frames were timed for a 99th percentile.'} All panels have one scale: how much "
        f"later than the own median. The solid line is the median{', the dashed one p99' if late else ''}; the strip "
        "below is the run from beginning to end."
    )


def classes(row: Row, rows: Sequence[Row]) -> str:
    """The class that is hardest, and the one that a finer stride helps most."""
    known = {name: value for name, value in (row.accuracy.iou if row.accuracy else {}).items() if value is not None}
    if not known:
        return "No class occurs in the labels."
    hardest = min(known, key=known.__getitem__)
    words = f"Hardest in {row.label}: {hardest}, {known[hardest]:.1f}."
    same = sorted(
        (other for other in rows if other.series == row.series and other.accuracy), key=lambda one: one.stride
    )
    if len(same) > 1 and same[0].accuracy and same[-1].accuracy:
        fine, coarse = same[0].accuracy.iou, same[-1].accuracy.iou
        gains = {name: (fine.get(name) or 0) - (coarse.get(name) or 0) for name in known}
        most = max(gains, key=gains.__getitem__)
        words += (
            f" Stride {same[0].stride} instead of {same[-1].stride} helps {most} most: "
            f"{coarse.get(most) or 0:.1f} to {fine.get(most) or 0:.1f}."
        )
    if any(behind(rows)):
        words += " Below the mean: points to the most accurate, compared image by image, with the 95 % interval."
    return words


def _points(row: Row) -> str:
    return f", {row.accuracy.miou:.1f} mIoU" if row.accuracy else ""
