"""What a trace recorded. Records are made when they are asked for: a step has tens of thousands of outputs."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias, overload

import torch

from gemma_doctor.kernels.outputs import Launched
from gemma_doctor.tensors import TensorStats
from gemma_doctor.verifications import Phase
from gemma_doctor.verify.dtypes import name_of

__all__ = ["Event", "Events", "Key", "Kind", "Log", "Origin", "Place", "Spot"]

Key: TypeAlias = tuple[Phase, str, str, int]
"""Phase, module, operation, and how often that operation had run there: the same place in another run of the model.

An operation in place has the name of the one that is not: which of them torch takes may differ in another run, for it
adds up gradients in place where nobody else holds them, and writes nothing in place where a dispatch mode watches.
"""

Origin: TypeAlias = "int | str | None"
"""The step that made a tensor, or the name of the parameter that it is; None for what nobody measured."""

Place: TypeAlias = tuple[Phase, str]
"""Phase and module."""

Spot: TypeAlias = "Place | int"
"""A place, or the sequence number of the autograd node that ran, which tells it later."""

Kind: TypeAlias = tuple[torch.dtype, torch.Size]
"""Dtype and shape."""


@dataclass(slots=True)
class Log:
    """What was noted of each output, in columns: an object for each would be looked at by each garbage collection.

    Attributes:
        spots: Where it arose.
        ops: The operation.
        origins: Where the tensors that went into it came from; one after the other, of all outputs.
        ends: Where its own end.
        unbounded: The steps at which a number given to the operation is infinite or NaN.
        kinds: Its dtype and shape, once it is on its way to be measured.
    """

    spots: list[Spot] = field(default_factory=list)
    ops: list[str] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    unbounded: set[int] = field(default_factory=set)
    kinds: list[Kind] = field(default_factory=list)

    def copied(self) -> Log:
        """What was noted until now."""
        return Log(
            spots=self.spots.copy(),
            ops=self.ops.copy(),
            origins=self.origins.copy(),
            ends=self.ends.copy(),
            unbounded=self.unbounded.copy(),
            kinds=self.kinds.copy(),
        )

    def sources(self, step: int) -> list[Origin]:
        """Where the tensors that went into an output came from."""
        return self.origins[self.ends[step - 1] if step else 0 : self.ends[step]]


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
        noted: Gives what was noted of each, when it is first asked for.
        found: Tells the places of spots.
        launched: The measurements, each of the outputs from ``starts`` on.
        starts: The first step of each measurement.
    """

    noted: Callable[[], Log]
    found: Callable[[Iterable[Spot]], Iterable[Place]]
    launched: Sequence[Launched]
    starts: Sequence[int]

    @cached_property
    def log(self) -> Log:
        """What was noted of each."""
        return self.noted()

    def __len__(self) -> int:
        return len(self.log.ops)

    @overload
    def __getitem__(self, step: int) -> Event: ...

    @overload
    def __getitem__(self, step: slice) -> list[Event]: ...

    def __getitem__(self, step: int | slice) -> Event | list[Event]:
        if isinstance(step, slice):
            return [self[at] for at in range(*step.indices(len(self)))]
        at = range(len(self))[step]
        origins = self.log.sources(at)
        dtype, shape = self.log.kinds[at]
        return Event(
            step=at,
            key=self._keys[at],
            dtype=name_of(dtype),
            shape=tuple(shape),
            inputs=tuple(origin for origin in origins if isinstance(origin, int)),
            weights=tuple(origin for origin in origins if isinstance(origin, str)),
            unbounded=at in self.log.unbounded,
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
        counts: Counter[tuple[Place, str]] = Counter()
        keys: list[Key] = []
        for place, name in zip(self.found(self.log.spots), self.log.ops, strict=True):
            op = name.removesuffix("_")
            keys.append((*place, op, counts[place, op]))
            counts[place, op] += 1
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
