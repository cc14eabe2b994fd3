"""The layers of a bundle or an ONNX file at any input size, for `edgeseg.inspection.report`."""

from __future__ import annotations

from pathlib import Path

from edgeseg.bundle import Bundle
from edgeseg.errors import BackendMissing, BundleError, InputError
from edgeseg.geometry import Graph
from edgeseg.types import Size


def from_bundle(bundle: Bundle, *, output_stride: int | None = None, input_size: Size | None = None) -> Graph:
    """Layers of a bundle's variant, float before quantised; stride 16 or else the finest unless one is named.

    Raises BundleError where the bundle lacks it, InputError where the size does not suit the network.
    """
    strides = bundle.output_strides
    wanted = output_stride or (16 if 16 in strides else strides[0])
    found = [variant for variant in bundle.manifest.variants if variant.output_stride == wanted]
    if not found:
        raise BundleError(f"{bundle.path} has no output stride {wanted}: it has {', '.join(map(str, strides))}")
    variant = min(found, key=lambda candidate: ("fp32", "fp16", "int8").index(candidate.precision))
    return from_onnx(bundle.file(variant.file), input_size=input_size)


def from_onnx(path: Path, *, input_size: Size | None = None) -> Graph:
    """Layers of an ONNX file whose input is one batch of images, (N, C, h, w) or (N, h, w, C).

    `input_size=None` is the file's own. Raises InputError where the file cannot be read or followed, BackendMissing
    without the onnx package.
    """
    try:
        import onnx

        from edgeseg.inspection.onnx_graph import Reader
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise BackendMissing('inspecting networks needs the package onnx: pip install "edgeseg[onnx]"') from error
    try:
        model = onnx.load(str(path), load_external_data=False)
        nodes = model.graph.node
    except Exception as error:  # protobuf's errors have no common base that every version exports
        reason = getattr(error, "strerror", None) or "it is not an ONNX file"
        raise InputError(f"cannot read {path}: {reason}") from error
    return Reader(model, path, input_size).read(nodes)
