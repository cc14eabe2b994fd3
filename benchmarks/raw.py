"""The runtimes alone: a graph compiled as the backend does, run on a batch that is ready, its output not touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeseg.backends.base import SessionInfo
from edgeseg.types import Batch

Run = Callable[[], object]
"""One inference."""


@dataclass(frozen=True, slots=True)
class _OpenVino:
    """A request only borrows the batch's memory, which is held here."""

    request: Any
    batch: Batch

    def __call__(self) -> None:
        self.request.infer()


def open_raw(graph: Path, like: SessionInfo, batch: Batch) -> Run | None:
    """A runner of `graph` on `batch` (kept, not copied), set up as the session that `like` describes.

    None for a backend that has none here.
    """
    opener = {"openvino": _openvino, "ort": _ort}.get(like.backend)
    return opener(graph, like, batch) if opener else None


def _openvino(graph: Path, like: SessionInfo, batch: Batch) -> Run:
    import openvino

    config: dict[str, object] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f16" if like.precision == "fp16" or like.device == "npu" else "f32",
    }
    if like.threads and like.device == "cpu":
        config["INFERENCE_NUM_THREADS"] = like.threads
    request = openvino.Core().compile_model(graph, like.device.upper(), config).create_infer_request()
    request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
    return _OpenVino(request, batch)


def _ort(graph: Path, like: SessionInfo, batch: Batch) -> Run:
    import onnxruntime

    from edgeseg.backends.ort import PROVIDER, session_options

    session = onnxruntime.InferenceSession(str(graph), session_options(like.threads), providers=[PROVIDER])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: batch})
