"""Divergence of logits: against a plain computation, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemma_doctor.verify.drift import drift


@given(st.integers(0, 2**32), st.integers(1, 700), st.integers(2, 9))
def test_it_is_the_mean_divergence(seed: int, rows: int, classes: int) -> None:
    """By torch's own kl_div, over more rows than are compared at a time."""
    generator = torch.Generator().manual_seed(seed)
    true, seen = torch.randn((2, 1, rows, classes), generator=generator)
    expected = torch.nn.functional.kl_div(
        seen.double().log_softmax(-1), true.double().log_softmax(-1), log_target=True, reduction="sum"
    )
    found = drift(true, seen)
    assert found.kl == pytest.approx(float(expected) / rows, rel=1e-9, abs=1e-12)
    assert found.top1 == pytest.approx(float((true.argmax(-1) == seen.argmax(-1)).double().mean()))


def test_equal_logits_do_not_drift() -> None:
    logits = torch.randn(2, 5, 7)
    assert (drift(logits, logits.clone()).kl, drift(logits, logits).top1) == (0.0, 1.0)


@given(st.integers(0, 2**32))
def test_a_divergence_is_never_negative(seed: int) -> None:
    """Of logits that are nearly the same, where the sum is all rounding."""
    true = torch.randn((4, 9), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert (drift(true, true + 1e-15 * true.flip(0)).kl or 0) >= 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_have_no_divergence(value: float) -> None:
    logits = torch.randn(2, 5, 7)
    broken = logits.clone()
    broken[0, 0, 0] = value
    assert drift(logits, broken).kl is None


@pytest.mark.parametrize("rows", [1, 1500])
def test_the_relative_error_is_that_of_the_whole(rows: int) -> None:
    """Frobenius norms over all positions, as NumPy has them in float64; more rows than are compared at a time."""
    rng = np.random.default_rng(0)
    true, seen = (rng.normal(size=(rows, 7)).astype(np.float32) for _ in range(2))
    expected = np.linalg.norm(seen.astype(np.float64) - true) / np.linalg.norm(true.astype(np.float64))
    assert drift(torch.from_numpy(true), torch.from_numpy(seen)).error == pytest.approx(expected, rel=1e-12)
    assert drift(torch.from_numpy(true), torch.from_numpy(true)).error == 0


def test_the_error_of_what_is_not_finite_is_not_known() -> None:
    assert drift(torch.ones(2, 3), torch.full((2, 3), torch.inf)).error is None
    assert drift(torch.zeros(2, 3), torch.zeros(2, 3)).error == 0
