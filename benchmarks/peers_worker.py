"""One contender in a process of its own, taking its turns by lines on stdin: PYTHON peers_worker.py SETTINGS.json

It also runs in the peers' own environment, so it imports edgeseg only where it is what runs. Answers are JSON lines.
Ctrl-C is its parent's affair.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Contender:
    """`run` takes a uint8 (H, W, 3) frame, or for those that are the network only (1, h, w, 3); it is what is timed.

    `mask` makes the (H, W) class map of what it gave, `stages` the nanoseconds of preprocess, network and decode.
    `quantized` counts the convolutions that the runtime executes in int8; None where it does not say.
    """

    runtime: str
    run: Callable[[Array], Any]
    mask: Callable[[Any], Array] | None = None
    stages: Callable[[Any], list[int]] | None = None
    quantized: int | None = None


def _edgeseg(settings: Settings) -> Contender:
    edgeseg = import_module("edgeseg")
    segmenter = edgeseg.load(
        settings["bundle"],
        backend=settings["backend"],
        precision=settings["precision"],
        output_stride=settings["output_stride"],
        threads=settings["threads"],
    )

    def stages(result: Any) -> list[int]:
        return [result.times.preprocess_ns, result.times.network_ns, result.times.decode_ns]

    return Contender(segmenter.info.runtime, segmenter, lambda result: np.asarray(result.class_map), stages)


def _session(settings: Settings) -> Contender:
    """edgeseg's own way of running the network, without the rest."""
    edgeseg, registry = import_module("edgeseg"), import_module("edgeseg.registry")
    base = import_module("edgeseg.backends.base")
    bundle, precision = edgeseg.Bundle.open(settings["bundle"]), settings["precision"]
    written = ("int8", "cpu") if precision == "int8" else ("fp32", "float")
    model = bundle.model(bundle.variant(settings["output_stride"], *written))
    options = base.Options(precision, settings["threads"])
    session = registry.get(settings["backend"]).open(model, "cpu", options, None)
    return Contender(session.describe().runtime, session.run)


def _openvino(settings: Settings) -> Contender:
    openvino = import_module("openvino")
    compiled = openvino.Core().compile_model(settings["graph"], "CPU", _openvino_config(settings))
    request = compiled.create_infer_request()

    def run(batch: Array) -> None:
        request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
        request.infer()

    return Contender(_openvino_version(openvino, compiled), run, quantized=_quantized(compiled))


def _model_api(settings: Settings) -> Contender:
    """OpenVINO Model API, all of its preprocessing in the graph; `own` leaves it its own configuration of OpenVINO.

    The frame and the network are both RGB, so that nothing has to be swapped.
    """
    openvino, models = import_module("openvino"), import_module("model_api.models")
    adapters = import_module("model_api.adapters")
    core = openvino.Core()
    network = core.read_model(settings["usual"])
    about = {
        "model_type": "Segmentation",
        "resize_type": "standard",
        "reverse_input_channels": "False",
        "mean_values": " ".join(map(str, settings["mean"])),
        "scale_values": " ".join(map(str, settings["std"])),
        "labels": " ".join(label.replace(" ", "_") for label in settings["labels"]),
        "return_soft_prediction": str(settings["soft"]),
    }
    for key, value in about.items():
        network.set_rt_info(value, ["model_info", key])
    openvino.save_model(network, settings["saved"], compress_to_fp16=False)
    if settings["own"]:
        model = models.Model.create_model(settings["saved"], device="CPU", nthreads=settings["threads"] or None)
    else:
        config = _openvino_config(settings)
        model = models.Model.create_model(adapters.OpenvinoAdapter(core, settings["saved"], plugin_config=config))
    compiled = model.inference_adapter.compiled_model

    def mask(result: Any) -> Array:
        return np.asarray(result.resultImage if settings["soft"] else result)

    version = import_module("importlib.metadata").version("openvino-model-api")
    runtime = f"openvino-model-api {version}, {_openvino_version(openvino, compiled)}"
    return Contender(runtime, model, mask, quantized=_quantized(compiled))


def _onnxruntime(settings: Settings) -> Contender:
    """What everyone writes around a session."""
    ort, cv2 = import_module("onnxruntime"), import_module("cv2")
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings["threads"]
    options.log_severity_level = 3
    # its threads may spin within a run, as they do by default, but not into another contender's turn
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(settings["usual"], options, providers=["CPUExecutionProvider"])
    (height, width), name = settings["size"], session.get_inputs()[0].name
    mean, std = (np.array(settings[key], np.float32) for key in ("mean", "std"))

    def run(frame: Array) -> Array:
        small = cv2.resize(frame, (width, height))
        image = (small.astype(np.float32) - mean) / std
        logits = session.run(None, {name: image.transpose(2, 0, 1)[None]})[0][0]
        scores = cv2.resize(logits.transpose(1, 2, 0), (frame.shape[1], frame.shape[0]))
        return np.asarray(np.argmax(scores, axis=2))

    return Contender(f"onnxruntime {ort.__version__}, cv2 {cv2.__version__}", run, np.asarray)


def _torch(settings: Settings) -> Contender:
    """The checkpoint itself; compiled, everything behind the resize is one function."""
    torch, cv2 = import_module("torch"), import_module("cv2")
    checkpoints, models = import_module("edgeseg.benchmarks.checkpoints"), import_module("edgeseg.models")
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    network = checkpoints.read_checkpoint(import_module("pathlib").Path(settings["weights"]))
    if settings["channels"] != network.classifier.out_channels:
        checkpoints.with_classes(network, settings["channels"])
    models.set_output_stride(network, settings["output_stride"])
    height, width = settings["size"]
    mean, std = (255 * torch.tensor(settings[key]).reshape(3, 1, 1) for key in ("unit_mean", "unit_std"))

    def whole(pixels: Any, size: tuple[int, int]) -> Any:
        logits = network(((pixels.permute(2, 0, 1) - mean) / std)[None])
        return torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].argmax(0)

    function = torch.compile(whole, dynamic=False) if settings["compiled"] else whole

    def run(frame: Array) -> Array:
        with torch.inference_mode():
            small = torch.from_numpy(cv2.resize(frame, (width, height)))
            return np.asarray(function(small, frame.shape[:2]).numpy())

    return Contender(f"torch {torch.__version__}", run, np.asarray)


def _openvino_config(settings: Settings) -> dict[str, Any]:
    threads = {"INFERENCE_NUM_THREADS": settings["threads"]} if settings["threads"] else {}
    hint = "bf16" if settings["precision"] == "bf16" else "f32"
    return {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint, **threads}


def _openvino_version(openvino: Any, compiled: Any) -> str:
    """With what it computes in where nothing is quantized: bf16 by default on CPUs that have it."""
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return f"openvino {openvino.__version__.split('-')[0]} in {precision}"


def _quantized(compiled: Any) -> int:
    about = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    kinds = [(str(one["layerType"].value), str(one["runtimePrecision"].value)) for one in about]
    return sum(kind == "Convolution" and precision in ("u8", "i8") for kind, precision in kinds)


_KINDS: dict[str, Callable[[Settings], Contender]] = {
    "edgeseg": _edgeseg,
    "session": _session,
    "openvino": _openvino,
    "model_api": _model_api,
    "onnxruntime": _onnxruntime,
    "torch": _torch,
}


def commands() -> queue.SimpleQueue[str]:
    """Lines of stdin as they come; where its other end closes, this process ends, whatever it is doing."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        with open(0, "rb", buffering=0, closefd=False) as stdin:  # a buffer's lock would be in the way at Python's end
            for line in stdin:
                lines.put(line.decode())
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def main(path: str) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lines = commands()
    with open(path, encoding="utf-8") as file:
        settings = json.load(file)
    # Libraries print what they like: the answers have a stdout of their own, everything else goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    frames = np.load(settings["frames"])
    contender = _KINDS[settings["kind"]](settings)
    answer(runtime=contender.runtime, quantized=contender.quantized, frames=len(frames))
    while True:
        command, *rest = lines.get().split(maxsplit=1)
        if command == "turn":
            begin = time.perf_counter_ns()
            result = contender.run(frames[int(rest[0])])
            elapsed = time.perf_counter_ns() - begin
            answer(ns=elapsed, stages=contender.stages(result) if contender.stages else [])
        elif command == "block":
            elapsed_ns = []
            for _ in range(int(rest[0])):
                begin = time.perf_counter_ns()
                contender.run(frames[0])
                elapsed_ns.append(time.perf_counter_ns() - begin)
            answer(ns=elapsed_ns)
        elif command == "masks":
            masks = [] if contender.mask is None else [contender.mask(contender.run(frame)) for frame in frames]
            np.save(rest[0].strip(), np.array(masks, np.uint8))
            answer(masks=len(masks))


if __name__ == "__main__":
    main(sys.argv[1])
