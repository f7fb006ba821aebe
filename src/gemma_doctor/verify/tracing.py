"""Every floating-point output of every operation, below autograd: where it arose, from what, and its figures.

Module hooks see what a module returns. This sees the residual add between two modules, the square inside a norm, the
casts, and the gradients. Outputs wait in batches and are measured by one launch a batch; what is measured stays on the
device until it is asked for, so tracing never waits for the device. What is done for each operation is little, since a
step has tens of thousands: most of them are functions of tensors that give one new tensor, and take a short way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from math import isfinite
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gemma_doctor.kernels.outputs import Launched, launch
from gemma_doctor.verify.events import Events, Kind, Log, Origin
from gemma_doctor.verify.operations import Operation, address, operation, tensors_in
from gemma_doctor.verify.passing import views_pass
from gemma_doctor.verify.places import Places

__all__ = ["Trace"]

_BATCH_TENSORS = 512
"""Outputs measured by one launch."""


class Trace(TorchDispatchMode):  # type: ignore[misc]  # torch is not seen by the type checker
    """Records while it is entered: ``with places.watching(), trace: model(...)``. It may be entered again.

    Args:
        places: The places of the model that runs.
        waiting: Bytes of outputs that may wait to be measured; they cannot be freed meanwhile.
    """

    def __init__(self, places: Places, waiting: int = 1 << 28) -> None:
        super().__init__()
        self._places = places
        self._waiting = waiting
        self._known: dict[int, Operation] = {}
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
        self._around: list[ExitStack] = []

    def __enter__(self) -> Trace:  # noqa: PYI034  # Self needs Python 3.11
        """Begin to record."""
        with ExitStack() as around:
            if self._places.ordinary:
                around.enter_context(views_pass())
            super().__enter__()
            self._around.append(around.pop_all())
        return self

    def __exit__(self, *raised: object) -> None:
        """Stop, whatever was raised meanwhile."""
        with self._around.pop():
            super().__exit__(*raised)

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
        known = self._known.get(id(func)) or self._learn(func)  # hashing the operator itself takes longer than this
        if not known.plain:
            return self._unusual(known, args, kwargs or {})
        origins = self._origins
        sources = [origins.get(address(value)) for value in args if isinstance(value, Tensor)]
        if kwargs:
            unbounded = known.numbers and _unbounded((*args, *kwargs.values()))
            result = known.run(*args, **kwargs)
        else:
            unbounded = known.numbers and _unbounded(args)
            result = known.run(*args)
        self._note(result, known, sources, unbounded)
        return result

    def events(self) -> Events:
        """Everything that was recorded so far."""
        self._flush()
        return Events(self._log.copied(), self._places.marks.found, tuple(self._launched), tuple(self._starts))

    def _learn(self, func: Any) -> Operation:  # noqa: ANN401  # an OpOverload
        known = self._known[id(func)] = operation(func)
        return known

    def _unusual(self, known: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Run any other operation: of views, of lists, of several outputs, or one that writes to its arguments."""
        if known.silent:
            return known.run(*args, **kwargs)
        given = (*args, *kwargs.values())
        sources = [self._origins.get(address(tensor)) for value in given for tensor in tensors_in(value)]
        targets = list(known.targets(args, kwargs))
        for target in targets:
            self._spare(target)
        result = known.run(*args, **kwargs)
        for output in (*targets, *known.outputs(result)):
            self._spare(output)  # of two outputs in one memory
            self._note(output, known, sources, _unbounded(given))
        return result

    def _spare(self, tensor: Tensor) -> None:
        """Have a pending output in this tensor's memory measured as it is now: a copy of it, which costs no launch."""
        step, measured = self._origins.get(address(tensor)), len(self._log.kinds)
        if isinstance(step, int) and step >= measured:
            self._pending[step - measured] = self._pending[step - measured].clone()
            del self._origins[address(tensor)]

    def _note(self, output: Tensor, known: Operation, sources: list[Origin], unbounded: bool) -> None:  # noqa: FBT001
        storage = address(output)
        if not (output.dtype.is_floating_point and storage and known.initialises and (size := output.nbytes)):
            self._origins.pop(storage, None)  # without an address: meta, where accelerate takes offloaded weights away
            return
        log = self._log
        self._origins[storage] = step = len(log.ops)
        log.spots.append(self._here())
        log.ops.append(known.name)
        log.origins += sources
        log.ends.append(len(log.origins))
        if unbounded:
            log.unbounded.add(step)
        self._pending.append(output)
        self._bytes += size
        if self._bytes >= self._waiting or len(self._pending) >= _BATCH_TENSORS:
            self._flush()

    def _flush(self) -> None:
        """Has the pending outputs measured."""
        for batch in _by_device(self._pending):
            self._starts.append(len(self._log.kinds))
            kinds = ((tensor.dtype, tensor.shape) for tensor in batch)
            self._log.kinds += [self._kinds.setdefault(kind, kind) for kind in kinds]  # of each kind one object
            self._launched.append(launch(batch))
        self._pending, self._bytes = [], 0


def _unbounded(values: Iterable[object]) -> bool:
    """Whether one of the numbers given to an operation is infinite or NaN."""
    return any(isinstance(value, float) and not isfinite(value) for value in values)


def _by_device(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, cut where the device changes."""
    devices = [tensor.device for tensor in tensors]
    start = 0
    for stop in range(1, len(tensors) + 1):
        if stop == len(tensors) or devices[stop] != devices[start]:
            yield tensors[start:stop]
            start = stop
