"""Growth: classes are added realistically, every table is filled, and the sentences name the bottleneck."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgeseg.benchmarks.extras import Stages
from edgeseg.benchmarks.growth import _frame_sentences, grow, table
from edgeseg.benchmarks.growth_classes import contested, widened
from edgeseg.bundle import Bundle
from edgeseg.loading import EMBEDDED
from edgeseg.testing import TINY


def test_classes_are_added_as_losers_and_taken_away_by_groups() -> None:
    bundle = Bundle.open(EMBEDDED)
    variant = bundle.variant(16, "fp32")
    logits = [bundle.golden(variant, index).logits for index in range(bundle.manifest.golden.frames)]
    for one, two, many in zip(logits, widened(logits, 2), widened(logits, 150), strict=True):
        np.testing.assert_array_equal(two.argmax(0), one.argmax(0) >= 6)  # groups of six and five
        np.testing.assert_array_equal(many[: len(one)], one)
        assert many.shape == (150, *one.shape[1:])
        assert many.dtype == np.float32
        winners = many.argmax(0)
        assert np.mean(winners >= len(one)) < 0.2
        assert contested(one) <= contested(many) < contested(one) + 0.2


def test_cells_are_contested_where_a_corner_differs() -> None:
    logits = np.zeros((2, 3, 4), np.float32)
    assert contested(logits) == 0
    logits[1, 0, 0] = 1
    assert contested(logits) == 1 / 6
    logits[1, 1, 1] = 1
    assert contested(logits) == 4 / 6


def test_every_table_is_filled() -> None:
    found = grow(
        path=TINY,
        precision="fp32",
        backend="ort",
        rounds=2,
        frames=((60, 80), (90, 160)),
        classes=(2, 130),
        decoded=((60, 80),),
        batches=(1, 3),
        threads=(1,),
    )
    assert [row.name for row in found.frames] == ["60x80", "90x160"]
    assert [row.name for row in (*found.batches, *found.threads)] == ["batch 1", "batch 3", "threads 1"]
    for row in (*found.frames, *found.batches, *found.threads):
        assert min(row.total_ms, row.preprocess_ms, row.network_ms, row.decode_ms) > 0, row
    assert [one.classes for one in found.classes] == [2, 130]
    assert all(one.plain_ms > 0 and one.confidence_ms > 0 and one.opencv_ms for one in found.classes)
    text = table(found)
    assert "130 to 60x80" in text
    assert all(sentence in text for sentence in found.sentences)


def test_sentences_name_the_bottleneck() -> None:
    small, large = Stages("1x1", 10, 1, 8, 1), Stages("2x2", 20, 2, 8, 10)
    assert _frame_sentences([small])[-1] == "The network is the bottleneck at every frame size."
    assert _frame_sentences([small, large]) == [
        "1x1: preprocess 10%, network 80%, decode 10% of the frame.",
        "2x2: preprocess 10%, network 40%, decode 50% of the frame.",
        "At 2x2 decode is the bottleneck, not the network.",
    ]
