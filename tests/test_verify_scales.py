"""The search for loss scales finds the edges of the window, whatever they are, in few passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_doctor.tensors import TensorStats
from gemma_doctor.verify.scales import LARGEST, search, tried

REFERENCE = {"layer.weight": TensorStats(count=100, zeros=10)}


def backward(low: int, high: int, seen: list[float] | None = None) -> Callable[[float], Mapping[str, TensorStats]]:
    """Gradients that vanish below 2**low and overflow above 2**high."""

    def run(scale: float) -> Mapping[str, TensorStats]:
        if seen is not None:
            seen.append(scale)
        if scale > 2.0**high:
            return {"layer.weight": TensorStats(count=100, zeros=10, inf=3)}
        return {"layer.weight": TensorStats(count=100, zeros=80 if scale < 2.0**low else 10)}

    return run


@given(st.integers(0, LARGEST), st.integers(0, LARGEST), st.integers(-5, 40))
def test_the_window_is_found_exactly(low: int, high: int, guess: int) -> None:
    scales = search(backward(low, high), REFERENCE, guess)
    if low <= high:
        assert (min(scales.sound), max(scales.sound)) == (2.0**low, 2.0**high)
        assert scales.room == high - low
    else:
        assert scales.sound == ()
    assert [trial.scale for trial in scales.trials] == sorted({trial.scale for trial in scales.trials})


@given(st.integers(0, LARGEST))
def test_a_right_guess_takes_few_passes(high: int) -> None:
    seen: list[float] = []
    search(backward(0, high, seen), REFERENCE, high)
    assert len(seen) == len(set(seen)) <= 3


@given(st.integers(0, LARGEST), st.integers(-1, LARGEST), st.integers(0, LARGEST))
def test_a_wrong_guess_takes_few_more(low: int, high: int, guess: int) -> None:
    """Growing steps, then bisection, on either side: a pass through a large model takes minutes."""
    seen: list[float] = []
    search(backward(low, high, seen), REFERENCE, guess)
    assert len(seen) == len(set(seen)) <= 15


@given(st.integers(-5, 40), st.sampled_from([-1, LARGEST]))
def test_where_all_or_none_overflow_few_passes_tell_it(guess: int, high: int) -> None:
    """The steps end at the last scale that there is, whatever the guess; and 1 is tried to know of underflow."""
    seen: list[float] = []
    search(backward(0, high, seen), REFERENCE, guess)
    assert len(seen) <= 7
    beyond = guess < 0 if high < 0 else guess > LARGEST
    assert not beyond or len(seen) <= 2


def test_scales_from_1_to_2_to_the_24_are_tried() -> None:
    assert search(backward(0, 99), REFERENCE).sound[-1] == 2.0**24
    assert search(backward(99, 99), REFERENCE).trials[0].scale == 1


@given(st.integers(0, 100))
def test_a_gradient_has_vanished_where_more_than_half_of_what_was_not_zero_is(zeros: int) -> None:
    """Of the reference's 90 of 100."""
    (trial,) = tried(lambda _: {"layer.weight": TensorStats(count=100, zeros=zeros)}, REFERENCE, 1.0).trials
    assert trial.outcome == ("underflow" if zeros - 10 > 90 / 2 else "sound")


@pytest.mark.parametrize("broken", [TensorStats(count=100, inf=1), TensorStats(count=100, nan=1)], ids=["inf", "nan"])
def test_overflow_is_told_by_any_number_that_is_not_finite(broken: TensorStats) -> None:
    (trial,) = tried(lambda _: {"layer.weight": broken}, REFERENCE, 1.0).trials
    assert trial.outcome == "overflow"


def test_each_side_names_the_layer_that_closes_it() -> None:
    """Gradients flow from the end: the last layer that overflows did so first. Below, what vanishes most is named."""
    names = [f"model.layers.{at}.mlp.weight" for at in range(4)]
    reference = {name: TensorStats(count=100) for name in names}

    def named(*zeros: int, inf: Sequence[int] = (0, 0, 0, 0)) -> str | None:
        rows = zip(names, zeros, inf, strict=True)
        seen = {name: TensorStats(count=100, zeros=zero, inf=broken) for name, zero, broken in rows}
        return tried(lambda _: seen, reference, 1.0).trials[0].module

    assert named(0, 0, 0, 99, inf=(1, 9, 1, 0)) == "model.layers.2.mlp"
    assert named(60, 90, 70, 0) == "model.layers.1.mlp"
    assert named(50, 0, 0, 0) is None


def test_a_window_that_is_never_open() -> None:
    scales = search(backward(0, -1), REFERENCE)
    assert scales.sound == ()
    assert {trial.outcome for trial in scales.trials} == {"overflow"}
    assert min(trial.scale for trial in scales.trials) == 1
    assert scales.trials[0].module == "layer"


def test_the_parameters_whose_gradients_decide_are_counted() -> None:
    """One of three is broken at 8, one of the two others has vanished at 1."""
    figures = {0: TensorStats(count=100), 60: TensorStats(count=100, zeros=60), 1: TensorStats(count=100, inf=1)}
    reference = dict.fromkeys("abc", TensorStats(count=100))
    (large,) = tried(lambda _: {"a": figures[1], "b": figures[60], "c": figures[0]}, reference, 8.0).trials
    (small,) = tried(lambda _: {"a": figures[60], "b": figures[60], "c": figures[0]}, reference, 1.0).trials
    assert (large.outcome, large.parameters) == ("overflow", 1)
    assert (small.outcome, small.parameters) == ("underflow", 2)


def test_gradients_that_are_broken_in_the_reference_do_not_count() -> None:
    broken = {"layer.weight": TensorStats(count=100, nan=1)}
    assert search(backward(0, -1), broken).room == LARGEST


def test_a_gradient_that_is_zero_in_the_reference_cannot_vanish() -> None:
    zero = {"layer.weight": TensorStats(count=100, zeros=100)}
    assert tried(lambda _: zero, zero, 1.0).trials[0].outcome == "sound"


@given(st.integers(0, LARGEST))
def test_without_a_reference_only_overflow_closes_the_window(high: int) -> None:
    assert search(backward(0, high), {}).room == high


def test_one_scale_that_the_user_names() -> None:
    (trial,) = tried(backward(5, 8), REFERENCE, 8.0).trials
    assert (trial.scale, trial.outcome, trial.module) == (8.0, "underflow", "layer")


@pytest.mark.parametrize(("share", "outcome"), [(2.0**-22, "sound"), (2.0**-18, "underflow")])
def test_a_gradient_that_is_no_more_than_rounding_closes_no_window(share: float, outcome: str) -> None:
    """A key's bias under softmax: its gradient is zero, but for what float32 makes of the sum."""
    reference = {
        "key.weight": TensorStats(count=10, minimum=-1e-10, maximum=5e-11),
        "key.bias": TensorStats(count=10, minimum=0.0, maximum=share * 1e-10),
    }
    lost = {**reference, "key.bias": TensorStats(count=10, zeros=10, minimum=0.0, maximum=0.0)}
    (trial,) = tried(lambda _: lost, reference, 8.0).trials
    assert trial.outcome == outcome
