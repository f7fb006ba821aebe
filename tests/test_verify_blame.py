"""Which operation is blamed: a mask that became infinite is none, an overflow beside it is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from checkpoints import healthy, tiny_gemma3_config, write

from gemma_doctor.verify.blame import first_bad
from gemma_doctor.verify.events import Events
from gemma_doctor.verify.places import Places
from gemma_doctor.verify.tracing import Trace


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
    model = torch.nn.Identity()
    places = Places.of(model)
    with torch.no_grad(), places.watching(), (trace := Trace(places)):
        for operation in operations:
            start = operation(start)
    return trace.events()


def test_a_clamp_at_the_largest_float16_hides_no_overflow() -> None:
    far = torch.tensor([1e6, -1e6, 1.0])
    events = traced(lambda x: x.clamp(-65504, 65504).half(), lambda x: x * x, lambda x: x - x, start=far)
    found = first_bad(events, None)
    assert found is not None
    assert found.key[2] == "aten.mul"


def test_a_row_that_is_hidden_whole_is_a_fault() -> None:
    least = torch.finfo(torch.float16).min
    scores = torch.full((2, 8), -40.0).half()
    events = traced(lambda x: x + torch.full((2, 8), least).half(), lambda x: x.softmax(-1), start=scores)
    found = first_bad(events, None)
    assert found is not None
    assert found.key[2] == "aten._softmax"


def test_a_mask_of_float32_may_become_infinite_in_the_cast() -> None:
    mask = torch.tensor([[0.0, torch.finfo(torch.float32).min]])
    events = traced(lambda x: x + 0.0, lambda x: x.half(), lambda x: x.softmax(-1), start=mask)
    assert [event.key[2] for event in events.nonfinite()] == ["aten._to_copy"]
    assert first_bad(events, None) is None
