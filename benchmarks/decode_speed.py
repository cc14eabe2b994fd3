"""How fast logits become a class map: edgeseg.decode against cv2.resize + argmax, and torch where it is installed.

    python -m edgeseg.benchmarks.decode_speed                       # 1080p, one thread, logits of the embedded bundle
    python -m edgeseg.benchmarks.decode_speed --logits mine.npy --size 720x1280 --json

Contenders take turns within each run, so that a busy machine slows all of them; medians and their ratios are printed.
Every contender gets float32 logits in the layout it likes best, prepared outside the clock.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

import edgeseg
from edgeseg.decode import active_path, class_map

Floats = npt.NDArray[np.float32]
Contender = Callable[[], npt.NDArray[Any]]
_GOLDEN = Path(edgeseg.__file__).parent / "data" / "camvid.edgeseg" / "golden.npz"
_GOLDEN_STRIDE = "os16"


def synthetic(classes: int, height: int, width: int) -> Floats:
    """Blurred noise: blobs about six logits wide, as on an image of moderate detail."""
    noise = np.random.default_rng(0).standard_normal((classes, height, width)).astype(np.float32)
    planes = np.stack([cv2.GaussianBlur(plane, (0, 0), 3.0 * width / 32) for plane in noise])
    return np.asarray(planes / planes.std() * 10, dtype=np.float32)


def read_logits(path: Path | None) -> tuple[str, list[Floats]]:
    """What was taken, and frames of float32 (C, h, w)."""
    if path is None and not _GOLDEN.exists():
        return "synthetic, 21 classes, 32x32", [synthetic(21, 32, 32)]
    source = path or _GOLDEN
    loaded = np.load(source)
    if isinstance(loaded, np.ndarray):
        name, arrays = str(source), [loaded]
    else:
        keys = [key for key in loaded.files if loaded[key].ndim in (3, 4) and loaded[key].dtype.kind == "f"]
        keys = [key for key in keys if _GOLDEN_STRIDE in key] or keys[:1]
        if not keys:
            raise SystemExit(f"{source} holds no float array of 3 or 4 dimensions; it has {loaded.files}")
        name, arrays = f"{source} {', '.join(keys)}", [loaded[key] for key in keys]
    frames = [frame for array in arrays for frame in (array[None] if array.ndim == 3 else array)]
    return name, [np.ascontiguousarray(frame, dtype=np.float32) for frame in frames]


def contenders(logits: Floats, size: tuple[int, int], threads: int) -> dict[str, Contender]:
    """Name -> function that makes the class map of `logits`."""
    height, width = size
    channels_last = np.ascontiguousarray(logits.transpose(1, 2, 0))

    def opencv() -> npt.NDArray[Any]:
        scores = cv2.resize(channels_last, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(scores.argmax(-1))

    def nearest() -> npt.NDArray[Any]:
        labels = logits.argmax(0).astype(np.uint8)
        return np.asarray(cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST))

    found: dict[str, Contender] = {
        "edgeseg": lambda: class_map(logits, size, threads=threads),
        "cv2.resize + argmax": opencv,
        "argmax + nearest (another mask)": nearest,
    }
    try:
        import torch
    except ImportError:
        return found
    torch.set_num_threads(threads)
    tensor = torch.from_numpy(logits)[None]

    def with_torch() -> npt.NDArray[Any]:
        scores = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)
        return np.asarray(scores[0].argmax(0).numpy())

    found["torch"] = with_torch
    return found


def measure(logits: Floats, size: tuple[int, int], threads: int, runs: int) -> dict[str, Any]:
    """Medians in ns, ratios to edgeseg's, and pixels that differ from edgeseg's mask, per contender."""
    cv2.setNumThreads(threads)
    entrants = contenders(logits, size, threads)
    masks = {name: run() for name, run in entrants.items()}  # the warm-up, too
    times: dict[str, list[int]] = {name: [] for name in entrants}
    for _ in range(runs):
        for name, run in entrants.items():
            started = time.perf_counter_ns()
            run()
            times[name].append(time.perf_counter_ns() - started)
    ours = statistics.median(times["edgeseg"])
    return {
        name: {
            "median_ns": statistics.median(values),
            "fastest_ns": min(values),
            "slowest_ns": max(values),
            "ratio": statistics.median(values) / ours,
            "pixels_differing": int(np.count_nonzero(masks[name] != masks["edgeseg"])),
        }
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Times edgeseg.decode against its alternatives.")
    parser.add_argument("--logits", type=Path, help=".npy or .npz of (C, h, w) or (n, C, h, w)")
    parser.add_argument("--size", default="1080x1920", help="HxW of the mask")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--frames", type=int, default=3, help="how many of the file's frames to take")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    height, width = (int(part) for part in options.size.lower().split("x"))
    name, frames = read_logits(options.logits)
    results = [measure(one, (height, width), options.threads, options.runs) for one in frames[: options.frames]]
    path = active_path()
    report = {
        "logits": name,
        "shape": list(frames[0].shape),
        "size": [height, width],
        "threads": options.threads,
        "runs": options.runs,
        "path": path.name,
        "machine": platform.machine(),
        "frames": results,
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    shape = "x".join(map(str, frames[0].shape))
    print(f"{name} ({shape}) to {height}x{width}, {options.threads} thread(s), {path.name} path, {options.runs} runs")
    for number, result in enumerate(results):
        print(f"frame {number}")
        for contender, row in result.items():
            spread = f"{row['fastest_ns'] / 1e6:.2f} to {row['slowest_ns'] / 1e6:.2f}"
            print(
                f"  {contender:32} {row['median_ns'] / 1e6:8.2f} ms ({spread}) "
                f"{row['ratio']:7.1f} x  {row['pixels_differing']} pixels differ"
            )


if __name__ == "__main__":
    main()
