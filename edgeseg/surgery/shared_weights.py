"""Several graphs on one weights file."""

from __future__ import annotations

import hashlib

import onnx

_EXTERNAL_FROM_BYTES = 1024
_ALIGNMENT = 64


class SharedWeights:
    """The tensors of several graphs, each stored once: strides 8, 16 and 32 cost the size of one."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._data = bytearray()
        self._offsets: dict[bytes, int] = {}

    def take_from(self, proto: onnx.ModelProto) -> None:
        """Move the graph's tensors of 1 KiB and more into the shared file, leaving references behind."""
        for tensor in proto.graph.initializer:
            raw = tensor.raw_data
            if len(raw) < _EXTERNAL_FROM_BYTES:
                continue
            key = hashlib.sha256(raw).digest()
            if key not in self._offsets:
                self._data += bytes(-len(self._data) % _ALIGNMENT)
                self._offsets[key] = len(self._data)
                self._data += raw
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for entry, value in (("location", self.file), ("offset", self._offsets[key]), ("length", len(raw))):
                tensor.external_data.add(key=entry, value=str(value))

    def data(self) -> bytes:
        """The file's bytes so far."""
        return bytes(self._data)
