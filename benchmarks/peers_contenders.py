"""Who takes part in the peers' comparison, and what each includes."""

from __future__ import annotations

import dataclasses
import itertools
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeseg.benchmarks.peers_graph import usual_graph
from edgeseg.benchmarks.peers_race import Spec
from edgeseg.bundle import Bundle
from edgeseg.preprocess import Preprocessor
from edgeseg.types import Image, Model

OURS = "edgeseg, OpenVINO"
NETWORK = "OpenVINO alone"
MODEL_API = "Model API"
_OURS_ORT = "edgeseg, ONNX Runtime"
_PEERS = "pip install openvino-model-api in an environment, and give its Python as --peers"


def contenders(
    bundle: Bundle,
    output_stride: int,
    precision: Literal["int8", "fp32", "bf16"],
    pictures: list[Image],
    folder: Path,
    peers: Path | None,
    weights: Path | None,
    threads: int,
) -> list[Spec]:
    """edgeseg's session, for benchmark_app; then the contenders, edgeseg first."""
    manifest = bundle.manifest
    int8 = precision == "int8"
    variant = bundle.variant(output_stride, "int8" if int8 else "fp32", "cpu" if int8 else "float")
    model = bundle.model(variant)
    usual = usual_graph(model, manifest.preprocess, folder / "usual.onnx")
    enlarged = usual_graph(model, manifest.preprocess, folder / "enlarged.onnx", enlarged=True)
    preprocessor = Preprocessor(manifest.preprocess)
    frames, batches, batch = (folder / f"{name}.npy" for name in ("frames", "batches", "batch"))
    np.save(frames, np.stack(pictures))
    np.save(batches, np.stack([preprocessor.prepare(one).copy() for one in pictures]))
    np.save(batch, preprocessor.prepare(pictures[0]))
    shared = {
        "bundle": str(bundle.path),
        "output_stride": output_stride,
        "precision": precision,
        "threads": threads,
        "graph": str(model.path),
        "usual": str(usual.path),
        "size": usual.size,
        "mean": usual.mean,
        "std": usual.std,
        "frames": str(frames),
        "batch": str(batch),
    }

    def spec(name: str, includes: str, against: str, kind: str, **more: Any) -> Spec:
        return Spec(name, includes, against, {**shared, "kind": kind, **more})

    exact = "resize, network, exact mask"
    found = [
        spec("session", "", "", "session", backend="openvino", frames=str(batches)),
        spec(OURS, exact, OURS, "edgeseg", backend="openvino"),
        spec(NETWORK, "the network on a prepared batch", OURS, "openvino", frames=str(batches)),
    ]
    labels = [one.name for one in manifest.classes]
    ways = itertools.product((enlarged, usual), (False, True), (True, False))
    for graph, own, soft in ways if peers or find_spec("model_api") else ():
        name, includes = _model_api(model, graph is enlarged, own, soft)
        files = {"usual": str(graph.path), "saved": str(folder / f"api{len(found)}.xml")}
        one = spec(name, includes, OURS, "model_api", own=own, soft=soft, labels=labels, **files)
        found.append(dataclasses.replace(one, python=peers, needs=_PEERS))
    if precision != "bf16":  # ONNX Runtime has none
        found.append(spec(_OURS_ORT, exact, _OURS_ORT, "edgeseg", backend="ort"))
        numpy = "cv2.resize, normalise in numpy, network, cv2.resize of scores, argmax"
        found.append(spec("ONNX Runtime and numpy", numpy, _OURS_ORT, "onnxruntime"))
    if weights is not None:
        preprocess = manifest.preprocess
        about = {"weights": str(weights), "channels": model.logits_shape[0]}
        about |= {"unit_mean": preprocess.mean, "unit_std": preprocess.std}
        torch = "resize, normalise, network in fp32, interpolate, argmax"
        found.append(spec("torch, eager", torch, OURS, "torch", compiled=False, **about))
        found.append(spec("torch.compile", torch, OURS, "torch", compiled=True, **about))
    return found


def _model_api(model: Model, enlarged: bool, own: bool, soft: bool) -> tuple[str, str]:
    """The name of one way of using Model API, and what it includes."""
    name = f"{MODEL_API}, {'enlarged' if enlarged else 'coarse'} logits, {'soft' if soft else 'not soft'}"
    steps = ["resize", "network", *["its logits enlarged in the graph"] * enlarged]
    height, width = model.input_size if enlarged else model.logits_shape[1:]
    steps += [f"argmax at {height}x{width}", "mask enlarged by nearest"]
    if soft:
        steps.append("scores likewise")
    if own:
        name += ", own settings"
        steps.append("OpenVINO as Model API sets it")
    return name, ", ".join(steps)
