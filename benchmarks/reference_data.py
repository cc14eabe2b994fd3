"""CamVid photos and drawn streets as training batches: every batch is a pure function of the seed and the step."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from edgeseg import images
from edgeseg._terminal import progress
from edgeseg.benchmarks.accuracy import labelled_pairs
from edgeseg.errors import InputError
from edgeseg.scene import street_scene
from edgeseg.types import ClassMap, Image, Size

CLASSES = 11
VOID = 255
Pair = tuple[Image, ClassMap]
Floats = npt.NDArray[np.floating]

_DRAWN_SHARE = 0.1
_SCALES = (0.6, 1.8)
_STRETCH, _ROTATION = 0.08, 4.0


@dataclass(frozen=True, slots=True)
class Photos:
    """Labelled images in memory: those trained on, and those held out to choose settings by."""

    train: tuple[Pair, ...]
    held_out: tuple[Pair, ...]


def read_photos(data: Path, split: str, held_out: float) -> Photos:
    """Read a split; of every sequence (the name up to "_") its last `held_out` share, 0 to 1, is kept apart.

    Whole ends of sequences, as neighbouring frames of a film show the same street. Raises InputError for a label that
    does not fit its photo, or where nothing is left to train on or was to be held out and cannot.
    """
    pairs = labelled_pairs(data, split)
    sequences: dict[str, int] = {}
    for photo, _ in pairs:
        sequences[_sequence(photo)] = sequences.get(_sequence(photo), 0) + 1
    seen: dict[str, int] = {}
    train: list[Pair] = []
    kept: list[Pair] = []
    with progress(pairs, f"reading {split}") as bar:
        for photo, label in bar:
            name = _sequence(photo)
            seen[name] = seen.get(name, 0) + 1
            end = seen[name] > round(sequences[name] * (1 - held_out))
            (kept if end else train).append(_read(photo, label))
    if not train or (held_out and not kept):
        part = "to train on" if not train else "held out"
        raise InputError(f"holding out {held_out:g} of {len(pairs)} photos leaves none {part}: choose another share")
    return Photos(tuple(train), tuple(kept))


def digest(photos: Photos) -> str:
    """SHA-256 of all pixels and labels, as 64 hex digits: a resumed run must see what it saw."""
    made = hashlib.sha256()
    for image, label in (*photos.train, *photos.held_out):
        made.update(repr(image.shape).encode() + image.tobytes() + label.tobytes())
    return made.hexdigest()


def _sequence(photo: Path) -> str:
    return photo.stem.split("_")[0]


def _read(photo: Path, label: Path) -> Pair:
    image, classes = images.read(photo), cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
    if classes is None or classes.dtype != np.uint8 or classes.shape != image.shape[:2]:
        found = "no image" if classes is None else f"{classes.dtype} of shape {classes.shape}"
        height, width = image.shape[:2]
        raise InputError(f"{label} is {found}: a grey 8-bit image of {height}x{width} class numbers is needed")
    return image, np.where(classes < CLASSES, classes, VOID).astype(np.uint8)


def draw_streets(count: int, seed: int, size: Size) -> tuple[Pair, ...]:
    """Street scenes with exact labels, to be mixed in."""
    with progress(range(count), "drawing streets") as bar:
        return tuple(street_scene(seed * count + index, size) for index in bar)


class Batches:
    """Batch `step` of a run: photos in an order shuffled anew each epoch, some places taken by drawn streets.

    Nothing is remembered from one batch to the next, so a resumed run sees what an unbroken one would have seen.
    """

    def __init__(self, photos: tuple[Pair, ...], streets: tuple[Pair, ...], size: Size, batch: int, seed: int) -> None:
        self._photos, self._streets, self._size, self._batch, self._seed = photos, streets, size, batch, seed

    def __call__(self, step: int) -> tuple[Image, ClassMap]:
        """uint8 RGB (N, H, W, 3) and class maps (N, H, W), 255 where there is no label."""
        rng = np.random.default_rng([self._seed, 1, step])
        pairs = []
        for place in range(step * self._batch, (step + 1) * self._batch):
            if self._streets and rng.uniform() < _DRAWN_SHARE:
                pair = self._streets[rng.integers(len(self._streets))]
            else:
                epoch, index = divmod(place, len(self._photos))
                order = np.random.default_rng([self._seed, 0, epoch]).permutation(len(self._photos))
                pair = self._photos[order[index]]
            pairs.append(augment(*pair, self._size, rng))
        return np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs])


def augment(image: Image, label: ClassMap, size: Size, rng: np.random.Generator) -> Pair:
    """One random view of `size`: scaled, stretched, turned, mirrored, cropped in one warp; light and noise changed."""
    matrix = view_matrix((image.shape[0], image.shape[1]), size, rng)
    view, classes = warp(image, label, matrix, size)
    return _light(view, rng), classes


def warp(image: Image, label: ClassMap, matrix: Floats, size: Size) -> Pair:
    """Image (bilinear, grey outside) and label (nearest, void outside) through one affine matrix (2, 3)."""
    target = size[::-1]
    # Pixels of a shrunk image are averages: without a blur before it the warp would alias.
    shrink = 1 / math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if shrink > 1.2:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.4 * shrink), np.uint8)
    view = cv2.warpAffine(image, matrix, target, flags=cv2.INTER_LINEAR, borderValue=(127, 127, 127))
    classes = cv2.warpAffine(label, matrix, target, flags=cv2.INTER_NEAREST, borderValue=VOID)
    return np.asarray(view, np.uint8), np.asarray(classes, np.uint8)


def view_matrix(source: Size, target: Size, rng: np.random.Generator) -> Floats:
    """A random affine matrix (2, 3) from source to target pixels, their centres at whole numbers."""
    scale = math.exp(rng.uniform(*np.log(_SCALES)))
    stretch = math.exp(rng.uniform(-_STRETCH, _STRETCH))
    turn = math.radians(rng.uniform(-_ROTATION, _ROTATION)) if rng.uniform() < 0.5 else 0.0
    mirror = -1 if rng.uniform() < 0.5 else 1
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    linear = np.array([[cos * stretch * mirror, -sin], [sin * stretch * mirror, cos]])
    room = np.abs(scale * np.array(source[::-1], float) - target[::-1]) / 2
    middle, wanted = ((np.array(side[::-1], float) - 1) / 2 for side in (source, target))
    return np.column_stack([linear, wanted + rng.uniform(-1, 1, 2) * room - linear @ middle])


def _light(image: Image, rng: np.random.Generator) -> Image:
    """Another camera and another hour: contrast, brightness, gamma, colour, blur, noise."""
    values = image.astype(np.float32) / 255
    if rng.uniform() < 0.8:
        grey = values @ np.array([0.299, 0.587, 0.114], np.float32)
        values = grey[..., None] + (values - grey[..., None]) * np.float32(rng.uniform(0.6, 1.4))
        values *= rng.uniform(0.92, 1.08, 3).astype(np.float32)
        values = (values - 0.45) * np.float32(rng.uniform(0.75, 1.3)) + np.float32(0.45 + rng.uniform(-0.12, 0.12))
        values = np.clip(values, 0, 1) ** np.float32(math.exp(rng.uniform(-0.35, 0.35)))
    if rng.uniform() < 0.15:
        values = np.asarray(cv2.GaussianBlur(values, (0, 0), rng.uniform(0.4, 1.2)), np.float32)
    if rng.uniform() < 0.2:
        values = values + rng.normal(0, rng.uniform(0.005, 0.03), values.shape).astype(np.float32)
    return np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8)


def class_weights(photos: tuple[Pair, ...]) -> npt.NDArray[np.float32]:
    """float32 (classes,): square root of median frequency over frequency, so rare classes weigh more, mean 1.

    Median frequency balancing (Eigen, Fergus, ICCV 2015, section 5), softened: at full strength poles and signs
    spread over what is beside them. Classes that never occur weigh what the rarest does. Raises InputError where none
    occurs.
    """
    counts = sum(np.bincount(label.ravel(), minlength=256)[:CLASSES] for _, label in photos)
    share = np.asarray(counts, np.float64) / max(1, np.sum(counts))
    present = share > 0
    if not present.any():
        raise InputError("no pixel of these photos is labelled with a class")
    weights = np.sqrt(np.median(share[present]) / np.maximum(share, share[present].min()))
    return np.asarray(weights / weights[present].mean(), np.float32)
