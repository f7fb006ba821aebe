"""What a trace recorded. Records are made when they are asked for: a step has tens of thousands of outputs."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, overload

import torch

from gemma_doctor.kernels.outputs import Launched
from gemma_doctor.tensors import TensorStats
from gemma_doctor.verifications import Phase
from gemma_doctor.verify.dtypes import name_of

__all__ = ["Event", "Events", "Key", "Origin", "Raw", "Sources"]

Key: TypeAlias = tuple[Phase, str, str, int]
"""Phase, module, operation, and how often that operation had run there: the same place in another run of the model."""

Origin: TypeAlias = "int | str | None"
"""The step that made a tensor, or the name of the parameter that it is; None for what nobody measured."""

Sources: TypeAlias = "tuple[Origin, ...]"

Raw: TypeAlias = tuple[tuple[Phase, str], str, Sources, bool]
"""Phase and module, operation, where its tensors came from, and whether a number given to it is infinite or NaN."""


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


@dataclass(frozen=True)
class Events(Sequence[Event]):
    """All outputs in the order of execution.

    Attributes:
        raw: What was noted of each.
        kinds: Its dtype and shape.
        launched: The measurements, each of the outputs from ``starts`` on.
        starts: The first step of each measurement.
    """

    raw: Sequence[Raw]
    kinds: Sequence[tuple[torch.dtype, torch.Size]]
    launched: Sequence[Launched]
    starts: Sequence[int]

    def __len__(self) -> int:
        return len(self.raw)

    @overload
    def __getitem__(self, step: int) -> Event: ...

    @overload
    def __getitem__(self, step: slice) -> list[Event]: ...

    def __getitem__(self, step: int | slice) -> Event | list[Event]:
        if isinstance(step, slice):
            return [self[at] for at in range(*step.indices(len(self)))]
        at = range(len(self))[step]
        _, _, origins, unbounded = self.raw[at]
        dtype, shape = self.kinds[at]
        return Event(
            step=at,
            key=self._keys[at],
            dtype=name_of(dtype),
            shape=tuple(shape),
            inputs=tuple(origin for origin in origins if isinstance(origin, int)),
            weights=tuple(origin for origin in origins if isinstance(origin, str)),
            unbounded=unbounded,
            stats=self.stats(at),
        )

    def stats(self, step: int) -> TensorStats:
        """What the numbers of one output are."""
        at = bisect_right(self.starts, step) - 1
        return self.launched[at].stats()[step - self.starts[at]]

    def nonfinite(self) -> Iterator[Event]:
        """The outputs that hold a NaN or an infinity."""
        for start, launched in zip(self.starts, self.launched, strict=True):
            yield from (self[start + at] for at, count in enumerate(launched.nonfinite()) if count)

    def by_key(self) -> Mapping[Key, TensorStats]:
        """The figures of each output by the place where it arose."""
        return _ByKey(self, {key: step for step, key in enumerate(self._keys)})

    @cached_property
    def _keys(self) -> list[Key]:
        counts: Counter[tuple[tuple[Phase, str], str]] = Counter()
        keys: list[Key] = []
        for (phase, module), op, *_ in self.raw:
            place = (phase, module), op
            keys.append((phase, module, op, counts[place]))
            counts[place] += 1
        return keys


@dataclass(frozen=True, slots=True)
class _ByKey(Mapping[Key, TensorStats]):
    events: Events
    steps: Mapping[Key, int]

    def __getitem__(self, key: Key) -> TensorStats:
        return self.events.stats(self.steps[key])

    def __iter__(self) -> Iterator[Key]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)
