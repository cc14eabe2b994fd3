"""For people who build on edgeseg: drawn scenes, a tiny bundle, a fake backend, and the proof a backend must pass.

class TestMine(edgeseg.testing.BackendConformance):
    def make_backend(self):
        return MyBackend()
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import get_args

import numpy as np

from edgeseg.backends.base import Backend, Device, Options, Session, SessionInfo
from edgeseg.bundle import Bundle, Golden
from edgeseg.errors import BackendError, DeviceError
from edgeseg.golden import check_golden
from edgeseg.scene import street_scene
from edgeseg.types import Batch, Encoding, Logits, Model, Precision

__all__ = ["TINY", "BackendConformance", "FakeBackend", "street_scene"]

TINY = Path(__file__).parent / "data" / "tiny.edgeseg"
"""A bundle of 100 KB: DeepLab in miniature (dilation, pooling branch, concat), 64x96, strides 8 and 16, 5 classes."""


class FakeBackend(Backend):
    """Needs no runtime: class k's logits are largest where a pixel's grey value lies in the k-th part of 0..255.

    For tests of what surrounds a network; its golden test is off, since it computes no network.
    """

    name = "fake"
    version = "fake 1"
    self_test = False

    def devices(self) -> list[Device]:
        return [Device("cpu", "no network at all")]

    def open(self, model: Model, device: str, options: Options, cache: Path | None) -> Session:
        if device != "cpu":
            raise DeviceError(f"backend fake has no device {device!r}: it runs on 'cpu'")
        self.refuse_encoding(model)
        return _FakeSession(model)


class _FakeSession(Session):
    def __init__(self, model: Model) -> None:
        self._shape = model.logits_shape

    def run(self, batch: Batch) -> Logits:
        classes, height, width = self._shape
        rows = (np.arange(height) * batch.shape[1]) // height
        columns = (np.arange(width) * batch.shape[2]) // width
        grey = batch[:, rows][:, :, columns].astype(np.float32).mean(axis=3)
        centres = (np.arange(classes, dtype=np.float32) + 0.5) * (256 / classes)
        logits: Logits = -np.abs(grey[:, None] - centres[None, :, None, None])
        return logits

    def describe(self) -> SessionInfo:
        return SessionInfo("fake", "fake 1", "cpu", "none", "fp32", 1)


class BackendConformance(ABC):
    """What every backend must hold to. Subclass it in a pytest file, name the backend, run pytest.

    `device`, `precision` and `bundle_path` may be overridden; tolerances are the bundle's for the precision.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    bundle_path: Path = TINY

    @abstractmethod
    def make_backend(self) -> Backend:
        """The backend under test."""

    def _model(self, output_stride: int) -> Model:
        bundle = Bundle.open(self.bundle_path)
        return bundle.model(bundle.variant(output_stride, "fp32"))

    def _session(self, output_stride: int | None = None) -> Session:
        stride = output_stride or Bundle.open(self.bundle_path).output_strides[-1]
        return self.make_backend().open(self._model(stride), self.device, Options(self.precision), None)

    def _golden(self) -> Golden:
        bundle = Bundle.open(self.bundle_path)
        return bundle.golden(bundle.variant(bundle.output_strides[-1], "fp32"))

    def test_names_itself_and_its_devices(self) -> None:
        backend = self.make_backend()
        assert backend.name
        assert backend.name == backend.name.lower()
        assert backend.version
        assert self.device in [device.name for device in backend.devices() if device.available]
        for device in backend.devices():
            assert device.available or device.reason, f"{device.name} is unavailable and does not say why"

    def test_matches_every_golden_frame_of_every_variant_it_takes(self) -> None:
        bundle, backend = Bundle.open(self.bundle_path), self.make_backend()
        for variant in bundle.manifest.variants:
            if variant.encoding not in ("float", *backend.encodings):
                continue
            precision = "int8" if variant.precision == "int8" else self.precision
            with backend.open(bundle.model(variant), self.device, Options(precision), None) as session:
                for index in range(bundle.manifest.golden.frames):
                    check_golden(bundle, variant, session, precision, index)

    def test_answers_float32_of_the_promised_shape(self) -> None:
        with self._session() as session:
            logits = session.run(self._golden().frame[None])
        assert logits.dtype == np.float32
        assert logits.shape == (1, *self._golden().logits.shape)

    def test_the_caller_owns_the_answer_and_the_input(self) -> None:
        frame = self._golden().frame[None]
        dark, kept = np.zeros_like(frame), frame.copy()
        with self._session() as session:
            first = session.run(frame)
            copy = first.copy()
            second = session.run(dark)
            np.testing.assert_array_equal(first, copy, "a second run changed the first one's answer")
            assert not np.array_equal(first, second)
            np.testing.assert_array_equal(frame, kept, "run changed its input")
            first[...] = 0  # writable, and not read again by the session
            np.testing.assert_array_equal(session.run(frame), copy, "the same input gave another answer")

    def test_takes_a_read_only_batch(self) -> None:
        frame = self._golden().frame[None].copy()
        frame.flags.writeable = False
        with self._session() as session:
            assert np.isfinite(session.run(frame)).all()

    def test_two_sessions_live_side_by_side(self) -> None:
        frame = self._golden().frame[None]
        with self._session() as first, self._session() as second:
            np.testing.assert_array_equal(first.run(frame), second.run(frame))

    def test_describes_what_really_runs(self) -> None:
        with self._session() as session:
            info = session.describe()
        assert info.backend == self.make_backend().name
        assert info.runtime
        assert info.device
        assert info.device_name
        assert info.precision == self.precision

    def test_closing_twice_is_fine(self) -> None:
        session = self._session()
        session.close()
        session.close()

    def test_refuses_a_device_it_does_not_have(self) -> None:
        self._expect(DeviceError, lambda: self.make_backend().open(self._tiny(), "toaster", Options(), None), "toaster")

    def test_refuses_a_file_that_is_no_network(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(b"\x08\x0agarbage" * 20)
        model = self._tiny()
        damaged = Model(broken, "0" * 64, "fp32", "float", model.input_size, model.logits_shape)
        self._expect(
            BackendError,
            lambda: self.make_backend().open(damaged, self.device, Options(self.precision), None),
            "broken.onnx",
        )

    def test_refuses_an_encoding_it_does_not_compute_rightly(self) -> None:
        backend = self.make_backend()
        for encoding in set(get_args(Encoding)) - {"float", *backend.encodings}:
            model = dataclasses.replace(self._tiny(), precision="int8", encoding=encoding)
            self._expect(
                BackendError, lambda model=model: backend.open(model, self.device, Options("int8"), None), encoding
            )

    def test_refuses_a_batch_of_another_shape(self) -> None:
        with self._session() as session:
            self._expect(BackendError, lambda: session.run(np.zeros((1, 8, 8, 3), np.uint8)), "(1, 8, 8, 3)")

    def _tiny(self) -> Model:
        return self._model(Bundle.open(self.bundle_path).output_strides[-1])

    @staticmethod
    def _expect(kind: type[Exception], action: object, text: str) -> None:
        assert callable(action)
        try:
            action()
        except kind as error:
            assert text in str(error), f"the message does not name {text!r}: {error}"
            assert "\n" not in str(error)
        else:
            raise AssertionError(f"{kind.__name__} expected")
