"""No output exceeds its proved bound: random small networks, run in float64, against the bounds of their weights.

Each expression is run as the operation it stands for; beside them, inputs that are made to reach a bound show that
it is no larger than it has to be.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import SIDE, Doubles, Network, convolve, reach, rms_norm, stats_of

from gemma_doctor.architectures.base import Conv
from gemma_doctor.architectures.bounds import Bound, bound, output_bound
from gemma_doctor.architectures.expressions import (
    AfterNorm,
    Input,
    Joined,
    Linear,
    Pooled,
    Repeated,
    Scaled,
    Sum,
    Within,
)
from gemma_doctor.tensors import TensorStats

ROUNDING = 1 + 1e-9


def _grow(network: Network, data: st.DataObject, depth: int) -> tuple[Input, Doubles]:
    """A random expression with one of its outputs."""
    if depth == 0:
        return network.leaf(data.draw(st.integers(1, 5)), normed=data.draw(st.booleans()))
    source, x = _grow(network, data, depth - 1)
    if data.draw(st.booleans()):
        return _changed(network, data, source, x)
    if data.draw(st.booleans()):
        other, y = network.leaf(len(x), normed=data.draw(st.booleans()))
        return Sum((source, other, source)), x + y + x
    other, y = _grow(network, data, depth - 1)
    return Joined((source, other)), np.concatenate([x, y])


def _changed(network: Network, data: st.DataObject, source: Input, x: Doubles) -> tuple[Input, Doubles]:
    """A random operation on one expression."""
    match data.draw(st.sampled_from(["conv", "conv", "scaled", "pooled", "repeated"])):
        case "conv":
            return network.linear(source, x, data.draw(st.sampled_from([1, 3])), depthwise=data.draw(st.booleans()))
        case "scaled":
            return network.scaled(source, x)
        case "pooled":
            return Pooled(source), network.mixed(x)
        case _:
            return network.repeated(source, x, data.draw(st.integers(1, 4)))


def _proved(source: Input, stats: dict[str, TensorStats]) -> Bound:
    proof = bound(source, stats)
    assert isinstance(proof, Bound)
    return proof


@settings(max_examples=400)
@given(st.data(), st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_no_network_exceeds_its_bound(data: st.DataObject, seed: int, depth: int) -> None:
    network = Network(np.random.default_rng(seed))
    source, x = _grow(network, data, depth)
    proof = _proved(source, network.stats())
    peak, norm = reach(x)
    assert peak <= proof.peak * ROUNDING
    assert norm <= proof.norm * ROUNDING
    assert proof.peak <= proof.norm * math.sqrt(len(x)) * ROUNDING


@settings(max_examples=100)
@given(st.data(), st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.booleans())
def test_no_convolution_exceeds_its_bound(data: st.DataObject, seed: int, size: int, depthwise: bool) -> None:  # noqa: FBT001
    network = Network(np.random.default_rng(seed))
    source, x = _grow(network, data, 1)
    linear, y = network.linear(source, x, size, depthwise=depthwise)
    assert isinstance(linear, Linear)
    bias, shift = network.tensor(len(y))
    conv = Conv(source, size * size, depthwise, bias=bias)
    proof = output_bound(conv, network.stats()[linear.weight], network.stats())
    assert isinstance(proof, Bound)
    peak, norm = reach(y + shift[:, None, None])
    assert peak <= proof.peak * ROUNDING
    assert norm <= proof.norm * ROUNDING


# Inputs made to reach the bound: it is not larger than it has to be.


def _constant(vector: npt.ArrayLike) -> Doubles:
    """The same vector over channels at every position."""
    return np.tile(np.asarray(vector, float)[:, None, None], (1, SIDE, SIDE))


def test_a_norm_reaches_its_bound() -> None:
    gain = np.array([0.5, -3.0, 1.0, 2.0])
    proof = _proved(AfterNorm("gain", 4), {"gain": stats_of(gain)})
    peak, norm = reach(rms_norm(_constant([0, 1e4, 0, 0]), gain))
    assert peak == pytest.approx(proof.peak)
    assert norm == pytest.approx(proof.norm)


def test_a_pointwise_convolution_of_a_normed_input_reaches_its_bound() -> None:
    rng = np.random.default_rng(0)
    weight, gain = rng.normal(size=(3, 8, 1, 1)), np.full(8, 2.0)
    x = rms_norm(_constant(1e4 * weight[np.argmax((weight**2).sum(axis=1)), :, 0, 0]), gain)
    proof = _proved(Linear("weight", AfterNorm("gain", 8)), {"weight": stats_of(weight), "gain": stats_of(gain)})
    assert reach(convolve(x, weight, depthwise=False))[0] == pytest.approx(proof.peak)


def test_a_kernel_of_normed_positions_reaches_its_bound() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(1, 8, 3, 3))
    weight /= np.sqrt((weight**2).sum(axis=1, keepdims=True))
    x = np.zeros((8, SIDE, SIDE))
    x[:, :3, :3] = 1e4 * weight[0]
    stats = {"weight": stats_of(weight), "gain": stats_of(np.ones(8))}
    proof = _proved(Linear("weight", AfterNorm("gain", 8), taps=9), stats)
    reached = reach(convolve(rms_norm(x, np.ones(8)), weight, depthwise=False))
    assert reached == pytest.approx((proof.peak, proof.norm))


@pytest.mark.parametrize("depthwise", [False, True])
def test_pixels_reach_the_bound_of_a_convolution(depthwise: bool) -> None:  # noqa: FBT001
    weight = np.random.default_rng(2).normal(size=(1, 1, 3, 3))
    x = np.zeros((1, SIDE, SIDE))
    x[0, :3, :3] = 2 * np.sign(weight[0, 0])
    source = Linear("weight", Within(2.0, 1, "pixels"), 9, depthwise)
    proof = _proved(source, {"weight": stats_of(weight)})
    assert reach(convolve(x, weight, depthwise=depthwise))[0] == pytest.approx(proof.peak)


def test_a_depthwise_kernel_reaches_its_norm_bound() -> None:
    weight = np.ones((4, 1, 3, 3))
    proof = _proved(
        Linear("weight", AfterNorm("gain", 4), 9, depthwise=True),
        {"weight": stats_of(weight), "gain": stats_of(np.ones(4))},
    )
    reached = reach(convolve(rms_norm(_constant([1e4] * 4), np.ones(4)), weight, depthwise=True))
    assert reached[1] == pytest.approx(proof.norm)


GAIN = np.array([1.0, -5.0])
PIXELS = Within(3.0, 2, "pixels")
MORE = Within(4.0, 2, "more pixels")


@pytest.mark.parametrize(
    ("source", "peak", "norm"),
    [
        (PIXELS, 3.0, math.sqrt(18)),
        (Pooled(PIXELS), 3.0, math.sqrt(18)),
        (Scaled("gain", PIXELS), 15.0, 5 * math.sqrt(18)),
        (Sum((PIXELS, MORE)), 7.0, math.sqrt(98)),
        (Joined((PIXELS, MORE)), 4.0, math.sqrt(18 + 32)),
        (Repeated(Pooled(PIXELS), 12), 3.0, math.sqrt(12 * 18)),
    ],
)
def test_compounds_of_pixels(source: Input, peak: float, norm: float) -> None:
    proof = _proved(source, {"gain": stats_of(GAIN)})
    assert (proof.peak, proof.norm) == pytest.approx((peak, norm))


def test_a_gated_unit_stays_within_the_bound_of_its_linear_layer() -> None:
    weight, gain = np.random.default_rng(3).normal(size=(8, 6, 1, 1)), np.ones(6)
    values, gates = np.split(convolve(rms_norm(_constant(weight[0, :, 0, 0]), gain), weight, depthwise=False), 2)
    proof = _proved(Linear("weight", AfterNorm("gain", 6)), {"weight": stats_of(weight), "gain": stats_of(gain)})
    peak, norm = reach(values / (1 + np.exp(-gates)))
    assert 0 < peak <= proof.peak
    assert 0 < norm <= proof.norm
