"""Figures of many named tensors: measured some hundreds at a time, and let go."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gemma_doctor.kernels.outputs import Launched, launch
from gemma_doctor.tensors import TensorStats
from gemma_doctor.verify import machine
from gemma_doctor.verify.passing import unseen

__all__ = ["Figures"]

_TOGETHER = 512
"""Tensors measured by one launch."""


@dataclass(slots=True)
class Figures:
    """Tensors that are measured as they come. What waits to be measured must not change, and cannot be freed."""

    _names: list[str] = field(default_factory=list)
    _waiting: list[Tensor] = field(default_factory=list)
    _bytes: int = 0
    _room: int = 0
    _launched: list[Launched] = field(default_factory=list)

    def add(self, name: str, tensor: Tensor) -> None:
        """Have one measured, at the latest when the next 512 have come, or a 16th of the free memory."""
        if self._waiting and self._waiting[0].device != tensor.device:
            self._launch()
        if not self._waiting:
            self._room = machine.waiting(tensor.device)
        self._names.append(name)
        self._waiting.append(tensor)
        self._bytes += tensor.nbytes
        if len(self._waiting) == _TOGETHER or self._bytes >= self._room:
            self._launch()

    def stats(self) -> dict[str, TensorStats]:
        """The figures of each, in the order in which they came; waits for the device."""
        self._launch()
        found = [stats for launched in self._launched for stats in launched.stats()]
        return dict(zip(self._names, found, strict=True))

    def _launch(self) -> None:
        if self._waiting:
            with unseen():
                self._launched.append(launch(self._waiting))
        self._waiting, self._bytes = [], 0
