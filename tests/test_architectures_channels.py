"""Bounds by channel: never below what a sum can reach, never above the sum of maxima, and equal where they line up."""

from __future__ import annotations

import math
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import Doubles, rms_norm, stats_of

from gemma_doctor.architectures.bounds import Prover
from gemma_doctor.architectures.channels import Channels, after_norm, larger, scaled, summed
from gemma_doctor.architectures.expressions import AfterNorm, Input, Linear, Scaled, Sum, Times, Within
from gemma_doctor.architectures.inequalities import Bound

CHANNELS = 6
ROUNDING = 1 + 1e-9


def elements(values: Doubles) -> array[float]:
    """Its elements, as a prover wants them."""
    return array("d", np.asarray(values, np.float64).tobytes())


def prove(source: Input, tensors: dict[str, Doubles], *, by_channel: bool = True) -> Bound:
    """The bound of an expression, with every vector known element by element or by its figures alone."""
    stats = {name: stats_of(values) for name, values in tensors.items()}
    vectors = {name: elements(values) for name, values in tensors.items() if values.ndim == 1}
    proof = Prover(stats, "exact", vectors if by_channel else {}).bound(source)
    assert isinstance(proof, Bound)
    return proof


def _unit(rng: np.random.Generator, *, spiked: bool) -> Doubles:
    """Vectors as a norm without a gain leaves them, shape (CHANNELS, 40); spiked: all in one channel."""
    x = rng.normal(size=(CHANNELS, 40))
    if spiked:
        x = np.eye(CHANNELS)[:, rng.integers(CHANNELS, size=40)] * rng.choice([-1.0, 1.0], size=40)
    unit: Doubles = x / np.sqrt(np.mean(x**2, axis=0))
    return unit


@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_no_stream_exceeds_its_bound_by_channel(seed: int, spiked: bool, plus_one: bool) -> None:  # noqa: FBT001
    """A stream of a normed term, a scaled one, a scaled product, and one of which the peak alone is known."""
    rng = np.random.default_rng(seed)
    tensors = {name: rng.normal(size=CHANNELS) * 10 ** rng.uniform(-2, 2, CHANNELS) for name in ("g", "h", "gamma")}
    tensors["w"] = rng.normal(size=(CHANNELS, CHANNELS))
    first, second, third = (_unit(rng, spiked=spiked) for _ in range(3))
    rest = rng.uniform(-0.5, 0.5, (CHANNELS, 40))
    one = float(plus_one)
    layer_scaled = Scaled("gamma", AfterNorm("h", CHANNELS))
    terms: tuple[Input, ...] = (
        AfterNorm("g", CHANNELS, plus_one=plus_one),
        Times(-2.0, layer_scaled),
        Scaled("gamma", Linear("w", AfterNorm(None, CHANNELS))),
        Within(0.5, CHANNELS, "the rest"),
    )
    gamma = tensors["gamma"][:, None]
    scaled_term = gamma * tensors["h"][:, None] * second
    x = (one + tensors["g"][:, None]) * first - 2 * scaled_term + gamma * (tensors["w"] @ third) + rest
    by_channel, by_peak = prove(Sum(terms), tensors), prove(Sum(terms), tensors, by_channel=False)
    assert np.abs(x).max() <= by_channel.peak * ROUNDING
    assert np.sqrt((x**2).sum(axis=0)).max() <= by_channel.norm * ROUNDING
    assert by_channel.peak <= by_peak.peak * ROUNDING
    assert by_channel.norm <= by_peak.norm * ROUNDING
    alone = prove(layer_scaled, tensors)
    assert np.abs(scaled_term).max() <= alone.peak * ROUNDING
    assert np.sqrt((scaled_term**2).sum(axis=0)).max() <= alone.norm * ROUNDING


def test_the_bound_of_a_channel_is_reached_and_the_sum_of_maxima_is_not() -> None:
    tensors = {"g": np.array([9.0, 1.0, 1.0, 0.0]), "h": np.array([0.0, 1.0, -7.0, 0.0])}
    stream = Sum((AfterNorm("g", 4), AfterNorm("h", 4)))
    spikes = np.eye(4)[:, :, None]
    reached = rms_norm(1e6 * spikes, tensors["g"]) + rms_norm(-1e6 * spikes, tensors["h"])
    proof = prove(stream, tensors)
    assert np.abs(reached).max() == pytest.approx(proof.peak) == pytest.approx(2 * 9)
    assert proof.why.endswith("to channel 0")
    assert prove(stream, tensors, by_channel=False).peak == pytest.approx(2 * 9 + 2 * 7)


def test_a_layer_scale_behind_a_norm_bounds_the_norm_by_the_largest_product() -> None:
    tensors = {"g": np.array([8.0, 1.0]), "gamma": np.array([0.5, 2.0])}
    source = Scaled("gamma", AfterNorm("g", 2))
    proof, loose = prove(source, tensors), prove(source, tensors, by_channel=False)
    root = math.sqrt(2)
    assert (proof.peak, proof.norm) == pytest.approx((4 * root, 4 * root))
    assert (loose.peak, loose.norm) == pytest.approx((16 * root, 16 * root))


def test_a_sum_is_no_ball_so_that_a_layer_scale_behind_it_does_not_shrink_its_norm() -> None:
    """Two terms, each in its own channel at once: the norm is that of both, though no channel reaches it."""
    tensors = {"g": np.array([3.0, 0.0]), "h": np.array([0.0, 3.0]), "gamma": np.ones(2)}
    proof = prove(Scaled("gamma", Sum((AfterNorm("g", 2), AfterNorm("h", 2)))), tensors)
    both = math.sqrt(2) * np.array([3.0, 3.0])
    assert proof.peak == pytest.approx(both.max())
    assert np.linalg.norm(both) <= proof.norm * ROUNDING


def test_a_silent_channel_stays_silent_behind_what_has_no_bound() -> None:
    channels = scaled([0.0, 2.0], None, math.inf)
    assert channels is not None
    assert list(channels.reach) == [0.0, math.inf]
    silenced = larger(channels, 0.0)
    assert silenced is not None
    assert list(silenced.reach) == [0.0, 0.0]


def test_what_leaves_the_range_of_float64_has_no_bound_and_warns_of_nothing() -> None:
    most = after_norm([1.7e308, 1.0], plus_one=False)
    both = summed([(most, math.inf), (after_norm([1.7e308, 0.0], plus_one=True), math.inf)])
    assert both is not None
    for channels in (most, both, larger(after_norm([1e308, 1.0], plus_one=False), 2.0), scaled([1e308], None, 1e308)):
        assert channels is not None
        assert channels.peak == math.inf
    finite = Channels(np.array([1.7e308, 1.0]))
    total = summed([(finite, 1.7e308)] * 2)
    assert total is not None
    assert list(total.reach) == [math.inf, 2.0]


def test_a_negative_factor_turns_signs_and_not_bounds() -> None:
    turned = larger(after_norm([3.0, 4.0], plus_one=False), -2.0)
    assert turned is not None
    assert turned.peak == pytest.approx(8 * math.sqrt(2))


def test_vectors_of_other_lengths_bound_nothing_by_channel() -> None:
    short, long = after_norm([1.0, 2.0], plus_one=False), after_norm([1.0, 2.0, 3.0], plus_one=False)
    assert summed([(short, 2.0), (long, 3.0)]) is None
    assert summed([(None, 2.0), (None, 3.0)]) is None
    assert scaled([1.0], long, 3.0) is None
    wrong = {"g": np.array([1.0, 5.0])}
    assert prove(AfterNorm("g", 4), wrong) == prove(AfterNorm("g", 4), wrong, by_channel=False)
