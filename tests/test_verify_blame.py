"""Which operation is blamed: a mask that became infinite is none, an overflow beside it is one."""

from __future__ import annotations

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
