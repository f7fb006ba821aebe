"""One model at a time: whatever a verification compares, no two models are in memory together."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
import torch
from checkpoints import healthy, tiny_gemma3_multimodal_config, write
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from gemma_doctor import doctor
from gemma_doctor.verify.bench import Bench
from gemma_doctor.verify.loading import Subject
from gemma_doctor.verify.measures import Measures, Request
from gemma_doctor.verify.step import Step

CONFIG = tiny_gemma3_multimodal_config()
WHOLE = Measures(device="cpu", loss_scale=64.0, request=Request(length=8))


@dataclass
class Alive:
    """Memory of all parameters that there ever were, as far as anything holds it: the parameter, a view, a state dict.

    Attributes:
        known: That memory, and its bytes; what was there before does not count.
        held: What is held on purpose.
        loads: Bytes after each model was loaded.
        peak: The most at any moment at which it was asked.
    """

    known: dict[StorageWeakRef, int] = field(default_factory=dict)
    held: list[object] = field(default_factory=list)
    loads: list[int] = field(default_factory=list)
    peak: int = 0

    def look(self) -> int:
        """Bytes that are held."""
        for parameter in parameters():
            if not parameter.is_meta:
                memory = parameter.untyped_storage()
                self.known.setdefault(StorageWeakRef(memory), memory.nbytes())
        held = sum(size for memory, size in self.known.items() if not memory.expired())
        self.peak = max(self.peak, held)
        return held


def parameters() -> list[nn.Parameter]:
    """All that exist."""
    return [one for one in gc.get_objects() if type(one) is nn.Parameter]


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Iterator[Alive]:
    """It looks when a model has been loaded, and before and after each of its runs.

    Python's own garbage collection is off: that it comes by in time is no proof.
    """
    seen = Alive({StorageWeakRef(one.untyped_storage()): 0 for one in parameters() if not one.is_meta})
    load = Subject._load  # noqa: SLF001  # the one place where models are loaded

    def loading(self: Subject, dtype: torch.dtype, memory: Any) -> Any:  # noqa: ANN401  # a class of transformers
        model = load(self, dtype, memory)
        seen.loads.append(seen.look())
        return model

    monkeypatch.setattr(Subject, "_load", loading)
    forward = Bench.forward

    def running(*args: Any, **kwargs: Any) -> Step:  # noqa: ANN401  # whatever it takes
        seen.look()
        step = forward(*args, **kwargs)
        seen.look()
        return step

    monkeypatch.setattr(Bench, "forward", running)
    gc.collect()
    gc.disable()
    yield seen
    gc.enable()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("one") / "checkpoint", healthy(CONFIG), CONFIG)


def verified(checkpoint: Path, measures: Measures) -> None:
    with torch.enable_grad():
        doctor.verify(checkpoint, measures, against=checkpoint if measures.reference == "float32" else None)


def wide() -> int:
    """Bytes of the model in float32."""
    return 4 * sum(tensor.size for tensor in healthy(CONFIG).values())


@pytest.mark.parametrize("how", [{}, {"mode": "amp"}], ids=str)
def test_no_two_models_are_in_memory_together(checkpoint: Path, alive: Alive, how: dict[str, Any]) -> None:
    """Reference, bfloat16, the other checkpoint and float16, with text and a picture: each alone."""
    verified(checkpoint, replace(WHOLE, **how))
    last = 4 if how.get("mode") == "amp" else 2
    assert alive.loads == [wide() * width // 4 for width in (4, 2, 4, last)]
    assert alive.peak == wide()
    assert alive.look() == 0


def test_a_model_that_refers_to_itself_is_freed_before_the_next_is_loaded(
    checkpoint: Path, alive: Alive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does whose module keeps a bound method of its own."""
    load = Subject._load  # noqa: SLF001  # as above

    def circular(self: Subject, dtype: torch.dtype, memory: Any) -> Any:  # noqa: ANN401  # a class of transformers
        model = load(self, dtype, memory)
        vars(model)["itself"] = [model]
        return model

    monkeypatch.setattr(Subject, "_load", circular)
    verified(checkpoint, replace(WHOLE, backward=False, modalities=("text",)))
    assert alive.peak == wide()


def test_a_reference_that_is_held_is_counted(checkpoint: Path, alive: Alive, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above relies on: only the memory of its weights is kept, and not the model."""
    load = Subject._load  # noqa: SLF001  # as above

    def holding(self: Subject, dtype: torch.dtype, memory: Any) -> Any:  # noqa: ANN401  # a class of transformers
        model = load(self, dtype, memory)
        alive.held += [one.detach() for one in model.parameters()] if dtype == torch.float32 else []
        return model

    monkeypatch.setattr(Subject, "_load", holding)
    verified(checkpoint, replace(WHOLE, backward=False, modalities=("text",)))
    assert alive.peak > wide()
