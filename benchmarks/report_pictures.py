"""The strip of pictures: frame, label, mask, and where mask and label differ."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg.benchmarks.report_html import Html, color, png, tag, uri
from edgeseg.benchmarks.report_rows import Pick, labels
from edgeseg.benchmarks.report_words import percent
from edgeseg.benchmarks.results import Results, Sample
from edgeseg.errors import InputError
from edgeseg.types import Image

_DIFFERENT = (170, 40, 235, 255)
"""Blue, green, red, opaque: in no class's colour of the usual palettes."""


def strip(results: Results, pick: Pick | None) -> list[Html]:
    """A row of pictures for each sample; a menu shows one configuration's masks, without a script all are there.

    Raises InputError naming the picture for what is no PNG file.
    """
    names = {
        measurement.configuration.name: label
        for measurement, (_, label) in zip(results.measurements, labels(results), strict=True)
    }
    keys = list(dict.fromkeys(key for sample in results.samples for key in sample.masks))
    chosen = pick.row.measurement.configuration.name if pick else ""
    chosen = chosen if chosen in keys else next(iter(keys), "")
    options = [
        tag("option", names.get(key, key), value=number, selected="" if key == chosen else None)
        for number, key in enumerate(keys)
    ]
    menu = tag("label", "Masks of ", tag("select", options, id="masks"), class_="menu")
    floats = {one.configuration.name for one in results.measurements if one.configuration.precision == "fp32"}
    judge = next((key for key in keys if key in floats), chosen)
    rows = []
    for number, sample in enumerate(results.samples):
        truth = sample.label or sample.masks.get(judge, "")
        against = "the label" if sample.label else names.get(judge, judge)
        rows.append(_Row(number, sample, truth, against, results.classes).html(keys, chosen, names))
    return [menu, *rows]


class _Row:
    """One sample; its frame is in the style sheet, as it is shown twice."""

    def __init__(self, number: int, sample: Sample, truth: str, against: str, classes: dict[str, str]) -> None:
        self._number, self._sample, self._truth, self._against = number, sample, truth, against
        self._colors = {tuple(int(color(value)[at : at + 2], 16) for at in (5, 3, 1)) for value in classes.values()}

    def html(self, keys: list[str], chosen: str, names: dict[str, str]) -> Html:
        sample = self._sample
        data, (height, width) = png(sample.frame, f"the frame of {sample.name}")[1:]
        kind = f"frame-{self._number}"
        sheet = tag("style", Html(f".{kind}{{background-image:url({data});aspect-ratio:{width}/{height}}}"))
        tiles = [_tile(tag("div", class_=f"picture {kind}", role="img", aria_label=f"frame {sample.name}"), "frame")]
        if sample.label:
            tiles.append(_tile(_image(sample.label, f"label of {sample.name}"), "label"))
        for number, key in enumerate(keys):
            if key not in sample.masks:
                continue
            shown = f"of-{number}" + (" on" if key == chosen else "")
            name = names.get(key, key)
            mask = sample.masks[key]
            tiles.append(_tile(_image(mask, f"mask of {sample.name} by {name}"), f"mask: {name}", shown))
            if not self._truth:
                continue
            different, share = self._difference(mask, name)
            words = f"{percent(share, 1)} not as {self._against}"
            picture = tag("img", src=different, alt=f"{name}: {words}")
            tiles.append(_tile(tag("div", tag("div", class_=f"dim {kind}"), picture, class_="picture"), words, shown))
        return tag("div", sheet, tag("h3", sample.name), tag("div", tiles, class_="tiles"), class_="sample")

    def _difference(self, mask: str, name: str) -> tuple[str, float]:
        """A PNG, clear but where a labelled pixel is another class's, and their share."""
        truth = _decoded(self._truth, f"the label of {self._sample.name}")
        given = _decoded(mask, f"the mask of {self._sample.name} by {name}")
        if truth.shape != given.shape:
            raise InputError(
                f"{self._sample.name} has a mask of {given.shape[0]}x{given.shape[1]} and a label of "
                f"{truth.shape[0]}x{truth.shape[1]}: both are of the frame's size"
            )
        labelled: npt.NDArray[np.bool_] = np.zeros(truth.shape[:2], np.bool_)
        for one in self._colors:
            labelled |= (truth == np.array(one, np.uint8)).all(axis=2)
        wrong = labelled & (truth != given).any(axis=2)
        picture = np.zeros((*wrong.shape, 4), np.uint8)
        picture[wrong] = _DIFFERENT
        return uri(cv2.imencode(".png", picture)[1].tobytes()), float(wrong.sum() / max(1, labelled.sum()))


def _tile(picture: Html, words: str, shown: str = "") -> Html:
    return tag("figure", picture, tag("figcaption", words), class_=f"tile {shown}".strip())


def _image(text: str, words: str) -> Html:
    _, data, (height, width) = png(text, f"the {words}")
    return tag("img", src=data, alt=words, width=width, height=height, class_="picture")


def _decoded(text: str, what: str) -> Image:
    """Uint8 (H, W, 3), blue first."""
    image = cv2.imdecode(np.frombuffer(png(text, what)[0], np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"{what} is a damaged PNG file: run the benchmark again")
    return np.asarray(image, np.uint8)
