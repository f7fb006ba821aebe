"""The typical size of an activation: what independent channels have, estimated by the figures of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from networks import Doubles, stats_of

from gemma_doctor.architectures.base import Conv
from gemma_doctor.architectures.expressions import (
    AfterNorm,
    Dot,
    Either,
    Input,
    Joined,
    Linear,
    Matched,
    Pooled,
    Product,
    Repeated,
    Rotated,
    Row,
    Scaled,
    Shifted,
    Slice,
    Sum,
    Times,
    Unbounded,
    Weighted,
    Within,
)
from gemma_doctor.architectures.typical import cautious_rms, row_spread, typical_rms
from gemma_doctor.tensors import MeasuredTensor, TensorInfo

CHANNELS, POSITIONS = 200, 300
NORMED, LOUD = AfterNorm("gain", CHANNELS), AfterNorm("loud", CHANNELS)


def weights(rng: np.random.Generator) -> dict[str, Doubles]:
    """Tensors whose figures all differ."""
    return {
        "gain": rng.normal(size=CHANNELS) * 0.7,
        "loud": rng.normal(size=CHANNELS) * 3,
        "matrix": rng.normal(size=(CHANNELS // 2, CHANNELS)) * 0.4,
        "table": rng.normal(size=(50, CHANNELS)) * 0.2,
    }


def measured(tensors: Mapping[str, Doubles]) -> dict[str, MeasuredTensor]:
    return {
        name: MeasuredTensor(TensorInfo(name, "F32", array.shape, "", 0, 4 * array.size), stats_of(array), "other")
        for name, array in tensors.items()
    }


def _cases(rng: np.random.Generator, w: Mapping[str, Doubles]) -> Mapping[str, tuple[Input, Doubles]]:
    """Expressions with independent vectors that they stand for, a column a position."""
    first, second, third = (rng.normal(size=(CHANNELS, POSITIONS)) for _ in range(3))
    x, y = w["gain"][:, None] * first, w["loud"][:, None] * second
    backwards = Linear("matrix", AfterNorm(None, CHANNELS // 2), inputs=CHANNELS // 2)
    return {
        "norm": (NORMED, x),
        "norm that adds one": (AfterNorm("gain", CHANNELS, plus_one=True), first + x),
        "norm without a gain": (AfterNorm(None, CHANNELS), first),
        "row": (Row("table", 3.0), 3 * w["table"].T),
        "linear": (Linear("matrix", NORMED), w["matrix"] @ x),
        "x @ W": (backwards, w["matrix"].T @ first[: CHANNELS // 2]),
        "shifted": (Shifted("loud", NORMED), x + w["loud"][:, None]),
        "scaled": (Scaled("loud", AfterNorm(None, CHANNELS)), y),
        "times": (Times(-2.5, NORMED), -2.5 * x),
        "pooled, sliced, turned": (Rotated(Slice(Repeated(Pooled(NORMED), 2), CHANNELS)), x),
        "sum": (Sum((NORMED, LOUD, AfterNorm(None, CHANNELS))), x + y + third),
        "product": (Product(AfterNorm(None, CHANNELS), LOUD), third * y),
        "weighted": (Weighted(Within(0.5, 1, "half"), LOUD), 0.5 * y),
        "matched": (Matched(NORMED, LOUD, CHANNELS), y),
    }


CASES = tuple(_cases(np.random.default_rng(0), weights(np.random.default_rng(0))))


@pytest.mark.parametrize("case", CASES)
def test_independent_channels_have_the_typical_size(case: str) -> None:
    rng = np.random.default_rng(1)
    tensors = weights(rng)
    source, x = _cases(rng, tensors)[case]
    assert typical_rms(source, measured(tensors)) == pytest.approx(float(np.sqrt(np.mean(x**2))), rel=0.1)


def test_of_parts_side_by_side_the_larger_counts_and_cautiously_the_smaller() -> None:
    tensors = measured(weights(np.random.default_rng(2)))
    small, large = (typical_rms(part, tensors) for part in (NORMED, LOUD))
    assert small < large / 3
    for both in (Joined((NORMED, LOUD)), Either((LOUD, NORMED))):
        assert (typical_rms(both, tensors), cautious_rms(both, tensors)) == (large, small)


def test_a_matrix_counts_cautiously_without_its_largest_row() -> None:
    matrix = np.ones((4, 9))
    matrix[2] = 100
    tensors, source = measured({"matrix": matrix}), AfterNorm(None, 9)
    linear = Linear("matrix", source)
    assert cautious_rms(linear, tensors) == pytest.approx(math.sqrt(27 / 4))
    assert typical_rms(linear, tensors) == pytest.approx(math.sqrt((27 + 90000) / 4))


def test_what_a_layer_scale_may_silence_counts_cautiously_for_nothing() -> None:
    tensors = measured(weights(np.random.default_rng(3)))
    silenced = Scaled("loud", Linear("matrix", NORMED))
    assert cautious_rms(silenced, tensors) == 0 < typical_rms(silenced, tensors)
    assert cautious_rms(Scaled("loud", NORMED), tensors) == typical_rms(Scaled("loud", NORMED), tensors)
    assert math.isnan(cautious_rms(Scaled("absent", Linear("matrix", NORMED)), tensors))


@pytest.mark.parametrize("estimate", [typical_rms, cautious_rms])
def test_what_is_not_known_has_no_size(estimate: Callable[[Input, Mapping[str, MeasuredTensor]], float]) -> None:
    tensors = measured(weights(np.random.default_rng(4)))
    unknown = Unbounded("grows with time")
    for source in (
        unknown,
        Dot(NORMED, LOUD),
        AfterNorm("absent", 4),
        Linear("absent", NORMED),
        Sum((NORMED, unknown)),
        Either((NORMED, unknown)),
    ):
        assert math.isnan(estimate(source, tensors))


def test_the_largest_channel_of_a_convolution_is_its_longest_row_times_its_inputs_size() -> None:
    tensors = measured({**weights(np.random.default_rng(5)), "kernel": np.array([[3.0, 4.0], [1.0, 1.0]])})
    known = Conv(Within(2.0, 2, "pixels"), 1, depthwise=False)
    unknown = Conv(Unbounded("grows with time"), 1, depthwise=False)
    assert row_spread(known, tensors["kernel"], tensors) == pytest.approx(10)
    assert row_spread(unknown, tensors["kernel"], tensors) == pytest.approx(5)
