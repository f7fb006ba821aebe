"""What a trace notes of each output, and when outputs are measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from gemma_doctor.kernels.outputs import Launched, launch
from gemma_doctor.verify.events import Events, Kind, Log, Origin
from gemma_doctor.verify.operations import Operation, address
from gemma_doctor.verify.places import Places

__all__ = ["BATCH", "Recording"]

BATCH = 512
"""Outputs measured by one launch."""


class Recording:
    """What a trace has noted so far.

    Args:
        places: The places of the model that runs.
        waiting: Bytes of outputs that may wait to be measured; they cannot be freed meanwhile.
    """

    def __init__(self, places: Places, waiting: int) -> None:
        self._places = places
        self._waiting = waiting
        self._here = places.here
        self._log = Log()
        self._kinds: dict[Kind, Kind] = {}
        self._origins: dict[int, Origin] = dict(places.storages)
        if places.offloaded is not None:
            places.offloaded.names = self._origins
        self._pending: list[Tensor] = []
        self._bytes = 0
        self._launched: list[Launched] = []
        self._starts: list[int] = []

    def sources(self, values: Iterable[object]) -> list[Origin]:
        """Where the tensors among these values come from."""
        origins = self._origins
        return [origins.get(address(value)) for value in values if isinstance(value, Tensor)]

    def spare(self, tensor: Tensor) -> None:
        """Have a pending output in this tensor's memory measured as it is now: a copy of it, which costs no launch."""
        step, measured = self._origins.get(address(tensor)), len(self._log.kinds)
        if isinstance(step, int) and step >= measured:
            self._pending[step - measured] = self._pending[step - measured].clone()
            del self._origins[address(tensor)]

    def note(self, output: Tensor, known: Operation, sources: list[Origin], unbounded: bool) -> None:  # noqa: FBT001
        """Note an output of an operation, which is measured later."""
        storage = address(output)
        if not (output.dtype.is_floating_point and storage and known.initialises and (size := output.nbytes)):
            self.forget(output)  # without an address: meta, where accelerate takes offloaded weights away
            return
        log = self._log
        self._origins[storage] = step = len(log.ops)
        log.spots.append(self._here())
        log.ops.append(known.name)
        log.origins += sources
        log.ends.append(len(log.origins))
        if unbounded:
            log.unbounded.add(step)
        self._pending.append(output.detach())  # autograd looks at how many hold a gradient, and copies what others do
        self._bytes += size
        if self._bytes >= self._waiting or len(self._pending) >= BATCH:
            self._flush()

    def forget(self, tensor: Tensor) -> None:
        """Nothing is known any more of what this tensor's memory holds."""
        self._origins.pop(address(tensor), None)

    def events(self) -> Events:
        """Everything that was noted so far."""
        self._flush()
        noted = self._log.copied()
        return Events(lambda: noted, self._places.marks.found, tuple(self._launched), tuple(self._starts))

    def _flush(self) -> None:
        """Has the pending outputs measured."""
        for batch in _by_device(self._pending):
            self._starts.append(len(self._log.kinds))
            kinds = ((tensor.dtype, tensor.shape) for tensor in batch)
            self._log.kinds += [self._kinds.setdefault(kind, kind) for kind in kinds]  # of each kind one object
            self._launched.append(launch(batch))
        self._pending, self._bytes = [], 0


def _by_device(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, cut where the device changes."""
    devices = [tensor.device for tensor in tensors]
    start = 0
    for stop in range(1, len(tensors) + 1):
        if stop == len(tensors) or devices[stop] != devices[start]:
            yield tensors[start:stop]
            start = stop
