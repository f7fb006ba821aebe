"""What float16 rounds up: each step in its arithmetic, where the exact bound is reached, against the enlarged bound."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pytest
from networks import Doubles, stats_of

from gemma_doctor.architectures.bounds import Prover
from gemma_doctor.architectures.expressions import (
    Dot,
    Input,
    Linear,
    Pooled,
    Product,
    Repeated,
    Rotated,
    Row,
    Scaled,
    Shifted,
    Sum,
    Times,
    Within,
)
from gemma_doctor.architectures.inequalities import Bound
from gemma_doctor.architectures.rounding import Arithmetic, elements_in_float16
from gemma_doctor.tensors import MeasuredTensor, TensorInfo

CHANNELS = 8
Halves = npt.NDArray[np.float16]
Made = tuple[Input, Halves, dict[str, Doubles]]


def halves(rng: np.random.Generator, *shape: int) -> Halves:
    """Numbers of float16 from 1 to 2, where a rounding is as large as it can be, and not as rare as elsewhere."""
    return rng.uniform(1, 2, shape).astype(np.float16)


def given(value: Halves) -> Within:
    """Channels that all have the same magnitude."""
    return Within(float(value), CHANNELS, "given")


def _linear(rng: np.random.Generator) -> Made:
    limit, weight = halves(rng)[()], halves(rng, 1, CHANNELS)
    return (
        Linear("w", given(limit)),
        (weight.astype(np.float32) @ np.full(CHANNELS, limit, np.float32)).astype(np.float16),
        {"w": weight.astype(float)},
    )


def _dot(rng: np.random.Generator) -> Made:
    one, other = halves(rng)[()], halves(rng)[()]
    total = np.float32(CHANNELS) * np.float32(one) * np.float32(other)
    return Dot(given(one), given(other)), np.float16(total), {}


def _times(rng: np.random.Generator) -> Made:
    limit, factor = halves(rng)[()], float(rng.uniform(1, 2))
    return Times(factor, given(limit)), np.float16(factor) * limit, {}


def _row(rng: np.random.Generator) -> Made:
    word, root = halves(rng, 1, 1), float(rng.uniform(1, 2))
    return Row("w", root), word * np.float16(root), {"w": word.astype(float)}


def _rotated(rng: np.random.Generator) -> Made:
    limit, angle = halves(rng)[()], math.pi / 4
    turned = limit * np.float16(math.cos(angle)) + limit * np.float16(math.sin(angle))
    return Rotated(given(limit)), turned, {}


def _mixed(rng: np.random.Generator) -> Halves:
    """Equal attention to some positions that hold the same: its weights, rounded, may add up to more than one."""
    limit, count = halves(rng)[()], int(rng.integers(3, 200))
    weights = np.full(count, 1 / count, np.float32).astype(np.float16)
    return np.array([limit, np.float16(np.float32(limit) * weights.astype(np.float32).sum())])


def _pooled(rng: np.random.Generator) -> Made:
    limit, mixed = _mixed(rng)
    return Pooled(given(limit)), mixed, {}


def _repeated(rng: np.random.Generator) -> Made:
    limit, mixed = _mixed(rng)
    return Repeated(given(limit), 2), mixed, {}


def _pairwise(rng: np.random.Generator, make: Callable[[Within, Within], Input], operation: np.ufunc) -> Made:
    one, other = halves(rng)[()], halves(rng)[()]
    return make(given(one), given(other)), operation(one, other), {}


def _with_vector(rng: np.random.Generator, make: Callable[[str, Input], Input], operation: np.ufunc) -> Made:
    limit, vector = halves(rng)[()], halves(rng, 1)
    return make("v", given(limit)), operation(vector, limit), {"v": vector.astype(float)}


STEPS: Mapping[str, Callable[[np.random.Generator], Made]] = {
    "linear": _linear,
    "dot": _dot,
    "times": _times,
    "row": _row,
    "rotated": _rotated,
    "pooled": _pooled,
    "repeated": _repeated,
    "product": lambda rng: _pairwise(rng, Product, np.multiply),
    "sum": lambda rng: _pairwise(rng, lambda one, other: Sum((one, other)), np.add),
    "scaled": lambda rng: _with_vector(rng, Scaled, np.multiply),
    "shifted": lambda rng: _with_vector(rng, Shifted, np.add),
}


def peak(source: Input, tensors: Mapping[str, Doubles], arithmetic: Arithmetic) -> float:
    """The largest magnitude that is proved to be possible."""
    proof = Prover({name: stats_of(array) for name, array in tensors.items()}, arithmetic).bound(source)
    assert isinstance(proof, Bound)
    return proof.peak


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_bounded_with_what_float16_rounds_up_and_would_not_be_without(step: str) -> None:
    rounded_up = 0
    for seed in range(200):
        source, result, tensors = STEPS[step](np.random.default_rng(seed))
        reached = float(np.abs(result).max())
        assert reached <= peak(source, tensors, "float16")
        rounded_up += reached > peak(source, tensors, "exact") * (1 + 1e-12)
    assert rounded_up > 5


def vector(dtype: str, *elements: float) -> MeasuredTensor:
    """A vector that is known element by element."""
    info = TensorInfo("gain", dtype, (len(elements),), "file", 0, 0)
    return MeasuredTensor(info, stats_of(np.array(elements)), "norm", elements=array("d", elements))


def test_elements_are_rounded_as_a_loader_rounds_them_unless_one_of_them_overflows() -> None:
    rounded = elements_in_float16(vector("BF16", 1 + 2**-11, -1 - 3 * 2**-11, 2.0**-25, 65519.0))
    assert rounded == array("d", [1.0, -1 - 2**-9, 0.0, 65504.0])
    assert elements_in_float16(vector("F16", 1.0, -3.0)) == array("d", [1.0, -3.0])
    assert elements_in_float16(vector("BF16", 1.0, 65520.0)) is None
    assert elements_in_float16(vector("BF16", 1.0, math.nan)) is None
