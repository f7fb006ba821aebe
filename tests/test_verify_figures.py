"""Figures of many tensors: in their order, by few launches, and holding no more memory than may wait."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from gemma_doctor.kernels.outputs import Launched, launch
from gemma_doctor.verify import figures, machine
from gemma_doctor.verify.figures import Figures


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The devices of what was measured together."""
    seen: list[list[str]] = []

    def launching(tensors: Sequence[Tensor]) -> Launched:
        seen.append([tensor.device.type for tensor in tensors])
        return launch([tensor for tensor in tensors if not tensor.is_meta])

    monkeypatch.setattr(figures, "launch", launching)
    return seen


def test_each_has_its_own_however_many_there_are(launched: list[list[str]]) -> None:
    made = Figures()
    for at in range(1200):
        made.add(f"tensor {at}", torch.tensor([float(at)]))
    assert [(name, stats.maximum) for name, stats in made.stats().items()] == [
        (f"tensor {at}", float(at)) for at in range(1200)
    ]
    assert [len(together) for together in launched] == [512, 512, 176]


def test_no_more_waits_than_may(launched: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as it is so much it is measured, and let go; then the counting begins anew."""
    monkeypatch.setattr(machine, "waiting", lambda _: 100)
    made = Figures()
    held: list[StorageWeakRef] = []
    for _ in range(6):  # of 40 bytes
        tensor = torch.ones(10)
        held.append(StorageWeakRef(tensor.untyped_storage()))
        made.add(str(len(held)), tensor)
        del tensor
        assert sum(not one.expired() for one in held) < 3
    assert [len(together) for together in launched] == [3, 3]


def test_what_lies_on_another_device_is_measured_apart(launched: list[list[str]]) -> None:
    made = Figures()
    for at, device in enumerate(("cpu", "cpu", "meta", "meta", "cpu")):
        made.add(str(at), torch.ones(1, device=device))
    made.add("last", torch.ones(1, device="meta"))
    assert launched == [["cpu", "cpu"], ["meta", "meta"], ["cpu"]]
