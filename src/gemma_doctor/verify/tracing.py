"""Every floating-point output of every operation, below autograd: where it arose, from what, and its figures.

Module hooks see what a module returns. This sees the residual add between two modules, the square inside a norm, the
casts, and the gradients. Outputs wait in batches and are measured by one launch a batch; what is measured stays on the
device until :meth:`Trace.events` asks for it, so tracing never waits for the device. What is done for each operation is
little, and records are made at the end: a step has tens of thousands of operations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gemma_doctor.kernels.outputs import Launched, launch
from gemma_doctor.tensors import TensorStats
from gemma_doctor.verifications import Phase
from gemma_doctor.verify.dtypes import name_of
from gemma_doctor.verify.operations import Operation, operation
from gemma_doctor.verify.places import Places

__all__ = ["Event", "Key", "Trace"]

_BATCH_TENSORS = 256
"""Outputs measured by one launch."""

_BATCH_BYTES = 1 << 28
"""Bytes of outputs that may wait for it: they cannot be freed meanwhile."""

Key: TypeAlias = tuple[Phase, str, str, int]
"""Phase, module, operation, and how often that operation had run there: the same place in another run of the model."""

_Origin: TypeAlias = "int | str"
"""The step that made a tensor, or the name of the parameter that it is."""


@dataclass(frozen=True, slots=True)
class Event:
    """One output.

    Attributes:
        step: Place in the order of execution.
        key: Where it arose.
        dtype: The format's name of its dtype.
        shape: Its shape.
        inputs: The steps whose outputs went into it.
        weights: The names of the parameters and buffers that did.
        unbounded: Whether an infinity or NaN was asked for: a number given to the operation is one.
        stats: What its numbers are.
    """

    step: int
    key: Key
    dtype: str
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    weights: tuple[str, ...]
    unbounded: bool
    stats: TensorStats

    @property
    def nonfinite(self) -> int:
        """NaNs and infinities."""
        return self.stats.nan + self.stats.inf


class Trace(TorchDispatchMode):  # type: ignore[misc]  # torch is not seen by the type checker
    """Records while it is entered: ``with places.watching(), trace: model(...)``.

    Args:
        places: The places of the model that runs.
        first: The number of its first step.
    """

    def __init__(self, places: Places, first: int = 0) -> None:
        super().__init__()
        self._places = places
        self._first = first
        self._known: dict[Any, Operation] = {}
        self._raw: list[tuple[Phase, str, str, torch.dtype, torch.Size, list[_Origin], bool]] = []
        self._origins: dict[int, _Origin] = dict(places.storages)
        self._pending: list[Tensor] = []
        self._storages: set[int] = set()
        self._bytes = 0
        self._launched: list[Launched] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch is to guard every call against its compiler (10 us each): nothing here is compiled."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  # an OpOverload
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # whatever the operation returns
        """Run one operation and note what it wrote."""
        known = self._known.get(func)
        if known is None:
            known = self._known[func] = operation(func)
        kwargs = kwargs or {}
        if known.silent:
            return func(*args, **kwargs)
        if known.written:
            targets = list(known.targets(args, kwargs))
            if not self._storages.isdisjoint(map(_storage, targets)):
                self._flush()
        else:
            targets = []
        origins: list[_Origin] = []
        unbounded = self._sources((*args, *kwargs.values()), origins)
        result = func(*args, **kwargs)
        for output in (*targets, *known.outputs(result)):
            if output.is_floating_point():
                self._note(output, known, origins, unbounded=unbounded)
            else:
                self._origins.pop(_storage(output), None)
        return result

    def events(self) -> list[Event]:
        """Everything that was recorded, in the order of execution; waits for the device."""
        self._flush()
        counts: Counter[tuple[Phase, str, str]] = Counter()
        found: list[Event] = []
        stats = (one for launched in self._launched for one in launched.stats())
        for raw, measured in zip(self._raw, stats, strict=True):
            phase, module, op, dtype, shape, origins, unbounded = raw
            place = (phase, module, op)
            found.append(
                Event(
                    step=self._first + len(found),
                    key=(*place, counts[place]),
                    dtype=name_of(dtype),
                    shape=tuple(shape),
                    inputs=tuple(origin for origin in origins if isinstance(origin, int)),
                    weights=tuple(origin for origin in origins if isinstance(origin, str)),
                    unbounded=unbounded,
                    stats=measured,
                )
            )
            counts[place] += 1
        return found

    def _sources(self, values: tuple[Any, ...] | list[Any], origins: list[_Origin]) -> bool:
        """Collect where an operation's tensors come from; whether one of its numbers is infinite or NaN."""
        unbounded = False
        for value in values:
            if isinstance(value, Tensor):
                origin = self._origins.get(_storage(value))
                if origin is not None:
                    origins.append(origin)
            elif isinstance(value, (list, tuple)):
                unbounded |= self._sources(value, origins)
            elif isinstance(value, float):
                unbounded |= not math.isfinite(value)
        return unbounded

    def _note(self, output: Tensor, known: Operation, origins: list[_Origin], *, unbounded: bool) -> None:
        storage, size = _storage(output), output.nbytes
        if not size or not known.initialises or output.is_meta:  # meta: accelerate takes offloaded weights away
            self._origins.pop(storage, None)
            return
        self._origins[storage] = self._first + len(self._raw)
        phase, module = self._places.here()
        self._raw.append((phase, module, known.name, output.dtype, output.shape, origins, unbounded))
        self._pending.append(output)
        self._storages.add(storage)
        self._bytes += size
        if len(self._pending) >= _BATCH_TENSORS or self._bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Has the pending outputs measured, before they change."""
        with torch.no_grad():
            for batch in _by_device(self._pending):
                self._launched.append(launch(batch))
        self._pending, self._bytes = [], 0
        self._storages.clear()


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage().data_ptr()
    return address


def _by_device(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, cut where the device changes."""
    start = 0
    for stop in range(1, len(tensors) + 1):
        if stop == len(tensors) or tensors[stop].device != tensors[start].device:
            yield tensors[start:stop]
            start = stop
