"""Which operation is blamed: a mask that became infinite is none, an overflow beside it is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isnan
from pathlib import Path

import pytest
import tiny_models
import torch
from checkpoints import healthy, tiny_gemma3_config, write
from torch import nn

from gemma_doctor.tensors import TensorStats
from gemma_doctor.verifications import FailingOp
from gemma_doctor.verify.blame import Scene, first_bad, first_bad_weight, merged
from gemma_doctor.verify.events import Event, Events, Key
from gemma_doctor.verify.places import Places
from gemma_doctor.verify.step import parameter_stats
from gemma_doctor.verify.tracing import Trace

INF, NAN = float("inf"), float("nan")


def eager(folder: Path, dtype: torch.dtype, gain: float) -> Events:
    """A padded batch through attention that adds torch.finfo.min where it hides; scores grow with the gain squared."""
    model = tiny_models.load(folder, dtype).model
    model.set_attn_implementation("eager")
    for name, parameter in model.named_parameters():
        if "q_norm" in name or "k_norm" in name:
            parameter.data += gain
    ids = torch.arange(3, 11).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    places = Places.of(model)
    with torch.no_grad(), places.watching(), (trace := Trace(places)):
        model(input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids), use_cache=False)
    return trace.events()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_gemma3_config()
    return write(tmp_path_factory.mktemp("eager") / "checkpoint", healthy(config), config)


@pytest.mark.parametrize("with_reference", [True, False])
def test_a_mask_beyond_the_least_float16_hides_and_is_no_fault(folder: Path, *, with_reference: bool) -> None:
    events = eager(folder, torch.float16, 15.0)
    assert any(event.key[2] == "aten.add" and event.stats.inf for event in events.nonfinite())
    reference = eager(folder, torch.float32, 15.0).by_key() if with_reference else None
    assert first_bad(events, reference) is None


def test_scores_that_overflow_before_the_mask_are_a_fault(folder: Path) -> None:
    events, reference = (eager(folder, dtype, 1000.0) for dtype in (torch.float16, torch.float32))
    found = first_bad(events, reference.by_key())
    assert found is not None
    assert found.key == ("forward", "model.layers.0.self_attn", "aten.bmm", 0)


def traced(*operations: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> Events:
    """What a trace sees of some operations, one after the other."""
    model = nn.Identity()
    places = Places.of(model)
    with torch.no_grad(), places.watching(), (trace := Trace(places)):
        for operation in operations:
            start = operation(start)
    return trace.events()


def blamed(events: Events, reference: Mapping[Key, TensorStats] | None = None) -> str | None:
    """The operation that is."""
    found = first_bad(events, reference)
    return None if found is None else found.key[2]


def test_a_clamp_at_the_largest_float16_hides_no_overflow() -> None:
    far = torch.tensor([1e6, -1e6, 1.0])
    events = traced(lambda x: x.clamp(-65504, 65504).half(), lambda x: x * x, lambda x: x - x, start=far)
    assert blamed(events) == "aten.mul"


@pytest.mark.parametrize(
    "hide",
    [lambda x, mask: x + mask, lambda x, mask: x.add_(mask), lambda x, mask: mask - x.neg()],
    ids=["added", "in place", "subtracted from"],
)
@pytest.mark.parametrize("with_reference", [True, False])
def test_a_hidden_score_stays_hidden_in_whatever_reads_it(
    hide: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *, with_reference: bool
) -> None:
    def run(dtype: torch.dtype) -> Events:
        mask = torch.tensor([0.0, torch.finfo(dtype).min], dtype=dtype)
        scores = torch.full((2,), -40.0, dtype=dtype)
        return traced(
            lambda x: x * 1, lambda x: hide(x, mask * 1), lambda x: x * 2, lambda x: x.softmax(-1), start=scores
        )

    events = run(torch.float16)
    assert [event.stats.inf for event in events.nonfinite()] == [1, 1]
    assert first_bad(events, run(torch.float32).by_key() if with_reference else None) is None


def test_a_sum_that_overflows_without_a_mask_is_a_fault() -> None:
    """-100,000 is no mask, though float16 has no such number."""
    events = traced(lambda x: x * 1, lambda x: x.half(), start=torch.tensor([-1e5]))
    assert blamed(events) == "aten._to_copy"


@pytest.mark.parametrize("value", [INF, NAN])
@pytest.mark.parametrize("told", [True, False])
def test_what_was_asked_for_is_no_fault_and_neither_is_what_it_leads_to(value: float, *, told: bool) -> None:
    """By a number that was given, or by what the reference has there."""
    ask = (lambda x: x.masked_fill(x > 0, value)) if told else (lambda x: x * torch.tensor(value))
    mask = torch.full((2,), torch.finfo(torch.float16).min).half()
    events = traced(ask, lambda x: x * 2, lambda x: x + mask * 1, start=torch.ones(2).half())
    meant = TensorStats(count=2, nan=isnan(value), inf=not isnan(value))
    assert blamed(events, None if told else {event.key: meant for event in events}) is None


@pytest.mark.parametrize(("value", "found"), [(-INF, None), (NAN, "aten.mul")])
def test_nan_is_never_hidden_by_a_mask(value: float, found: str | None) -> None:
    """Where the reference has a mask's least number, an infinity is that mask; NaN is not."""
    events = traced(lambda x: x * torch.tensor(value), start=torch.ones(2))
    reference = {event.key: TensorStats(count=2, minimum=torch.finfo(torch.float32).min) for event in events}
    assert blamed(events, reference) == found


def test_a_row_that_is_hidden_whole_is_a_fault() -> None:
    least = torch.finfo(torch.float16).min
    scores = torch.full((2, 8), -40.0).half()
    events = traced(lambda x: x + torch.full((2, 8), least).half(), lambda x: x.softmax(-1), start=scores)
    assert blamed(events) == "aten._softmax"


def test_a_mask_of_float32_may_become_infinite_in_the_cast() -> None:
    mask = torch.tensor([[0.0, torch.finfo(torch.float32).min]])
    events = traced(lambda x: x + 0.0, lambda x: x.half(), lambda x: x.softmax(-1), start=mask)
    assert [event.key[2] for event in events.nonfinite()] == ["aten._to_copy"]
    assert first_bad(events, None) is None


FINE, BROKEN = TensorStats(count=2, minimum=1.0, maximum=2.0), TensorStats(count=2, inf=1, minimum=1.0, maximum=1.0)


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        (None, "second"),
        ({}, "second"),
        ({"first": FINE, "second": FINE, "third": FINE}, "second"),
        ({"second": BROKEN}, "third"),  # it was broken before
        ({"second": BROKEN, "third": BROKEN}, None),
    ],
)
def test_the_first_weight_that_the_cast_broke_is_named(
    stored: dict[str, TensorStats] | None, found: str | None
) -> None:
    assert first_bad_weight({"first": FINE, "second": BROKEN, "third": BROKEN}, stored) == found


class Gated(nn.Module):  # type: ignore[misc]  # torch is not read by the type checker
    """Squares a product with its weight, and multiplies it by itself: the last overflows in float16."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2, bias=False, dtype=torch.float16)
        self.inner.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).half()
        self.eps, self.hidden_size, self.width = 1e-6, 2, 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Broken for x = 100."""
        inner = self.inner(x)
        return inner * inner


def test_a_failure_tells_what_went_in_and_what_the_reference_has() -> None:
    """Each output and each weight once, by its name; the constants that bear on overflow, and no other."""
    model = nn.Sequential(Gated())
    reached = TensorStats(count=2, minimum=0.0, maximum=490_000.0)
    square = failed(model, 100.0, reached)
    assert (square.activation.module, square.activation.op, square.activation.shape) == ("0", "aten.mul", (1, 2))
    assert [(one.name, one.stats.absmax) for one in square.operands] == [("aten.mm of 0.inner", 700.0)]
    assert (square.config, square.reference_absmax) == ({"eps": 1e-6}, 490_000.0)
    model[0].inner.weight.data *= 16_000
    product = failed(model, 1.0, None)
    weight = ("0.inner.weight", "F16", 64_000.0)
    assert [(one.name, one.dtype, one.stats.absmax) for one in product.operands] == [weight]
    assert product.reference_absmax is None


def failed(model: nn.Module, value: float, reached: TensorStats | None) -> FailingOp:
    """The operation of a forward pass that failed first."""
    places, given = Places.of(model), torch.full((1, 2), value).half()
    with torch.no_grad(), places.watching(), (trace := Trace(places)):
        model(given)
    events = trace.events()
    reference = None if reached is None else {event.key: reached for event in events}
    failure = Scene("text", model, events, parameter_stats(model), reference).first_failure()
    assert failure is not None
    return failure


def test_an_operation_of_the_model_itself_is_named_alone() -> None:
    model = nn.Identity()
    events = traced(lambda x: x * 600, lambda x: x * x, start=torch.ones(2).half())
    failure = Scene("text", model, events, {}, None).first_failure()
    assert failure is not None
    assert [one.name for one in failure.operands] == ["aten.mul"]


def test_calls_of_one_operation_at_one_place_are_merged_by_dtype() -> None:
    def apart(event: Event) -> tuple[str, str]:
        return event.key[2], event.dtype

    events = traced(lambda x: x * 2, lambda x: x * -4, lambda x: x.half(), lambda x: x * 3, start=torch.ones(2))
    assert list(map(apart, events)) == [("aten.mul", "F32")] * 2 + [("aten._to_copy", "F16"), ("aten.mul", "F16")]
    found = {(one.op, one.dtype): one for one in merged(events, "text")}
    assert {place: (one.calls, one.step) for place, one in found.items()} == {
        ("aten.mul", "F32"): (2, 0),
        ("aten._to_copy", "F16"): (1, 2),
        ("aten.mul", "F16"): (1, 3),
    }
    joined = found["aten.mul", "F32"].stats
    assert (joined.count, joined.minimum, joined.maximum) == (4, -8.0, 2.0)
