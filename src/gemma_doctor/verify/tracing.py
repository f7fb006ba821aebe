"""Every floating-point output of every operation, below autograd: where it arose, from what, and its figures.

Module hooks see what a module returns. This sees the residual add between two modules, the square inside a norm, the
casts, and the gradients. Outputs wait in batches and are measured by one launch a batch; what is measured stays on the
device until it is asked for, so tracing never waits for the device. What is done for each operation is little, since a
step has tens of thousands: most of them are functions of tensors that give one new tensor, and take a short way.
:mod:`.native` does the same in C++, for GPUs, where this takes longer than what it watches.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from math import isfinite
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from gemma_doctor.verify.events import Events
from gemma_doctor.verify.operations import Operation, operation, tensors_in
from gemma_doctor.verify.passing import views_pass
from gemma_doctor.verify.places import Places
from gemma_doctor.verify.recording import Recording

__all__ = ["Trace"]


class Trace(TorchDispatchMode):  # type: ignore[misc]  # torch is not seen by the type checker
    """Records while it is entered: ``with places.watching(), trace: model(...)``. It may be entered again.

    Args:
        places: The places of the model that runs.
        waiting: Bytes of outputs that may wait to be measured; they cannot be freed meanwhile.
    """

    def __init__(self, places: Places, waiting: int = 1 << 28) -> None:
        super().__init__()
        self._ordinary = places.ordinary
        self._known: dict[int, Operation] = {}
        self._recorder = Recording(places, waiting)
        self._around: list[ExitStack] = []

    def __enter__(self) -> Trace:  # noqa: PYI034  # Self needs Python 3.11
        """Begin to record."""
        with ExitStack() as around:
            if self._ordinary:
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
        sources = self._recorder.sources(args)
        if kwargs:
            unbounded = known.numbers and _unbounded((*args, *kwargs.values()))
            result = known.run(*args, **kwargs)
        else:
            unbounded = known.numbers and _unbounded(args)
            result = known.run(*args)
        self._recorder.note(result, known, sources, unbounded)
        return result

    def events(self) -> Events:
        """Everything that was recorded so far."""
        return self._recorder.events()

    def _learn(self, func: Any) -> Operation:  # noqa: ANN401  # an OpOverload
        known = self._known[id(func)] = operation(func)
        return known

    def _unusual(self, known: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Run any other operation: of views, of lists, of several outputs, or one that writes to its arguments."""
        if known.silent:
            return known.run(*args, **kwargs)
        recorder = self._recorder
        given = (*args, *kwargs.values())
        sources = recorder.sources(tensor for value in given for tensor in tensors_in(value))
        targets = list(known.targets(args, kwargs))
        for target in targets:
            recorder.spare(target)
        result = known.run(*args, **kwargs)
        for output in (*targets, *known.outputs(result, known.made)):
            recorder.spare(output)  # of two outputs in one memory, or of what is given back as it was
            recorder.note(output, known, sources, _unbounded(given))
        for output in known.outputs(result, known.besides):
            recorder.forget(output)
        return result


def _unbounded(values: Iterable[object]) -> bool:
    """Whether one of the numbers given to an operation is infinite or NaN."""
    return any(isinstance(value, float) and not isfinite(value) for value in values)
