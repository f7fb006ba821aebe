"""What modules return, beside the reference's: relative errors, zeroed positions, and nothing that a trace sees."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gemma_doctor.verify.outputs import Compared, Comparing, Keeping, seeing, worst
from gemma_doctor.verify.places import Places
from gemma_doctor.verify.tracing import Trace


class Scale(nn.Module):
    """Multiplies, and may spoil what it returns."""

    def __init__(self, spoil: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.spoil = spoil

    def forward(self, x: Tensor) -> Tensor:
        """Twice the input, spoilt."""
        return self.spoil(2 * x)


def compared(x: Tensor, spoil: Callable[[Tensor], Tensor]) -> Comparing:
    """A module's output against that of the same module unspoilt."""
    keeping = Keeping()
    model = nn.Sequential(Scale())
    with seeing(model, keeping):
        model(x)
    model = nn.Sequential(Scale(spoil))
    with seeing(model, comparing := Comparing(keeping.kept)):
        model(x)
    return comparing


def zeroed(*index: int | slice) -> Callable[[Tensor], Tensor]:
    def spoil(x: Tensor) -> Tensor:
        x = x.clone()
        x[index] = 0
        return x

    return spoil


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
def test_the_error_is_relative_to_the_reference(factor: float) -> None:
    (one,) = compared(torch.randn(3, 5), lambda x: x * factor).results()
    assert one.error == pytest.approx(abs(1 - factor), abs=1e-6)
    assert (one.module, one.kind, one.nonfinite) == ("0", "Scale", 0)


def test_infinities_are_counted_and_the_largest_finite_magnitude_is_told() -> None:
    (one,) = compared(torch.ones(2, 4), lambda x: x.index_fill(1, torch.tensor([0]), math.inf)).results()
    assert (one.nonfinite, one.absmax) == (2, 2.0)
    assert not math.isfinite(one.error)


@pytest.mark.parametrize(
    ("shape", "index", "share"),
    [
        ((2, 5, 16), (0, 3), 1 / 10),  # a position of a sequence: its last axis
        ((1, 16, 4, 4), (0, slice(None), 1, 2), 1 / 16),  # of a picture's features: its second
        ((1, 16, 4, 4), (0, 3, 1, 2), 0),  # one number is no position
        ((1, 16, 8, 8), (0, slice(None), 1, 2), 1 / 64),  # the same, where the width may be the channels
        ((2, 4, 3, 16), (0, 1, 2), 1 / 24),  # of an attention's heads: its last
        ((4, 1, 6, 8), (2, 0, 1, 5), 0),  # nor where the second axis is a batch of one
    ],
)
def test_zeroed_positions_are_found_along_the_channels(
    shape: tuple[int, ...], index: tuple[int | slice, ...], share: float
) -> None:
    x = 1 + torch.rand(shape, generator=torch.Generator().manual_seed(0))
    (one,) = compared(x, zeroed(*index)).results()
    assert one.collapsed == pytest.approx(share)


def test_positions_that_are_nearly_zero_in_the_reference_do_not_count() -> None:
    x = torch.ones(4, 8)
    x[1] = 1e-4
    (one,) = compared(x, zeroed(1)).results()
    assert one.collapsed == 0


@pytest.mark.parametrize("long", [1.0, 200.0])
def test_positions_a_hundredth_as_long_as_most_do_count(long: float) -> None:
    """One that is very long does not make the others negligible."""
    x = torch.ones(16, 8)
    x[0] = long
    x[1] = 0.9 if long > 1 else 0.02
    (one,) = compared(x, zeroed(1)).results()
    assert one.collapsed == 1 / 16


def test_an_output_that_is_zero_in_the_reference_too_is_right() -> None:
    (one,) = compared(torch.zeros(4, 8), lambda x: x).results()
    assert (one.error, one.collapsed) == (0, 0)


def test_what_is_kept_is_a_copy() -> None:
    keeping = Keeping()
    model = nn.Sequential(Scale())
    with seeing(model, keeping):
        model(torch.ones(4)).mul_(1000)
    assert keeping.kept["0", 0].output.tolist() == [2, 2, 2, 2]
    assert keeping.kept["0", 0].peak == 2


def test_the_mean_square_is_the_least_over_positions() -> None:
    conv = nn.Conv2d(2, 3, 1, bias=False)
    keeping = Keeping()
    with seeing(nn.Sequential(conv), keeping):
        y = conv(torch.randn(1, 2, 4, 4)).detach()
    assert keeping.kept["0", 0].mean_square_min == pytest.approx(float(y.square().mean(1).amin()))


@pytest.mark.parametrize(
    ("module", "shape", "axis"),
    [
        (nn.Conv1d(2, 3, 1), (1, 2, 5), 1),
        (Scale(), (2, 5, 3), -1),
        (Scale(), (5, 3), None),
        (Scale(), (1, 2, 5, 3), None),
    ],
    ids=["sound", "sequences", "table", "heads"],
)
def test_only_what_has_channels_has_a_mean_square(module: nn.Module, shape: tuple[int, ...], axis: int | None) -> None:
    keeping = Keeping()
    with seeing(nn.Sequential(module), keeping):
        y = module(torch.randn(shape)).detach()
    seen = keeping.kept["0", 0].mean_square_min
    assert seen == (None if axis is None else pytest.approx(float(y.square().mean(axis).amin())))


class Answering(nn.Module):
    """Returns what a model does: a loss, logits, and more."""

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """The logits are what counts."""
        return {"loss": x.sum(), "ids": x.long(), "logits": x * 2, "hidden_states": (x, x)}


def test_of_what_a_model_returns_the_logits_are_compared() -> None:
    keeping = Keeping()
    with seeing(model := Answering(), keeping):
        model(torch.ones(2, 3))
    assert {call: kept.output.tolist() for call, kept in keeping.kept.items()} == {("", 0): [[2.0] * 3] * 2}


def test_nothing_is_no_output() -> None:
    keeping = Keeping()
    with seeing(model := nn.Sequential(nn.Identity(), Scale(), Scale(lambda x: x[:0])), keeping):
        model(torch.ones(4))
    assert list(keeping.kept) == [("1", 0)]


def test_the_worst_call_of_a_module_counts_and_nan_is_the_worst() -> None:
    def calls(*errors: tuple[str, float]) -> list[Compared]:
        return [Compared(module, "Scale", 1.0, 0, error, 0.0) for module, error in errors]

    nan = math.nan
    for errors in ((0.5, nan, 0.1), (nan, 0.5), (0.5, nan), (math.inf, nan)):
        assert math.isnan(worst(calls(*(("a", error) for error in errors)))["a"].error)
    found = worst(calls(("a", 0.1), ("b", 0.3), ("a", 0.2), ("b", 0.1)))
    assert [(module, one.error) for module, one in found.items()] == [("b", 0.3), ("a", 0.2)]


def test_a_module_that_passes_on_what_it_was_given_is_not_seen_twice() -> None:
    keeping = Keeping()
    model = nn.Sequential(nn.Sequential(Scale(), nn.Identity()))
    with seeing(model, keeping):
        model(torch.ones(4))
    assert list(keeping.kept) == [("0.0", 0)]


def test_each_call_of_a_module_is_compared_with_its_own_and_the_worst_counts() -> None:
    shared = Scale()
    model = nn.Sequential(shared, shared)
    keeping = Keeping()
    with seeing(model, keeping):
        model(torch.ones(4))
    shared.spoil = lambda x: torch.where(x > 3, x * 1.5, x)
    with seeing(model, comparing := Comparing(keeping.kept)):
        model(torch.ones(4))
    assert [round(one.error, 6) for one in comparing.results()] == [0, 0.5]
    assert worst(comparing.results())["0"].error == pytest.approx(0.5)


def test_a_trace_does_not_see_what_is_compared() -> None:
    model = nn.Sequential(Scale())
    places = Places.of(model)
    with places.watching(), seeing(model, Keeping()), (trace := Trace(places)):
        model(torch.ones(4, 8))
    assert [event.key[2] for event in trace.events()] == ["aten.ones", "aten.mul"]


def test_an_output_of_another_shape_is_not_compared() -> None:
    assert compared(torch.ones(4), lambda x: x[:2]).results() == []
