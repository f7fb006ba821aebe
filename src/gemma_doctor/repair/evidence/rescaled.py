"""What a checkpoint's bounds would be if tensors were multiplied by powers of two, and how far they are from it."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

from gemma_doctor.architectures.base import Reader, Rescaling
from gemma_doctor.architectures.ranges import BoundedValue, RangeAnalysis, analyse
from gemma_doctor.architectures.typical import cautious_rms
from gemma_doctor.examination import Examination
from gemma_doctor.repair.evidence.calibration import Calibration, Measured
from gemma_doctor.repair.evidence.outputs import Square
from gemma_doctor.tensors import MeasuredTensor, TensorStats

__all__ = ["MARGIN", "Furthest", "Ranges"]

MARGIN = 4.0
"""Measured peaks stay within their limit divided by this, two bits: other inputs reach further. Bounds need none."""


@dataclass(frozen=True, slots=True)
class Furthest:
    """The value of a rescaling that is furthest beyond what it may be.

    Attributes:
        item: The value.
        reach: How large it can become.
        room: How large it may be.
        basis: ``"proved"``, or ``"measured"`` where a trace's peaks are in it.
    """

    item: BoundedValue
    reach: float
    room: float
    basis: str

    @property
    def exponent(self) -> int:
        """The least k >= 0 for which reach * 2**-k is below the room; 0 where the reach is no number."""
        if not math.isfinite(self.reach) or self.reach < self.room:
            return 0
        return math.floor(math.log2(self.reach / self.room)) + 1


@dataclass(frozen=True, slots=True)
class Ranges:
    """The bounds of a checkpoint under powers of two.

    Attributes:
        exam: The examined checkpoint.
        calibration: The trace; None where there is none.
    """

    exam: Examination
    calibration: Calibration | None
    _tensors: Mapping[str, MeasuredTensor] = field(init=False, repr=False)
    _measured: Mapping[str, Measured] = field(init=False, repr=False)
    _as_it_is: RangeAnalysis = field(init=False, repr=False)
    _as_traced: RangeAnalysis = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tensors = {self.exam.canonical(name): tensor for name, tensor in self.exam.tensors.items()}
        object.__setattr__(self, "_tensors", tensors)
        object.__setattr__(self, "_measured", self._by_canonical_name())
        peaks = {name: measured.peak for name, measured in self._measured.items()}
        object.__setattr__(self, "_as_it_is", self.analysis({}))
        object.__setattr__(self, "_as_traced", analyse(self.exam.model, tensors, peaks))

    def analysis(self, exponents: Mapping[str, int]) -> RangeAnalysis:
        """Every value's bound, with tensors multiplied by powers of two.

        Args:
            exponents: Canonical name -> power.
        """
        tensors = dict(self._tensors)
        for name, exponent in exponents.items():
            if name in tensors:
                known = self.exam.model.expected.get(name)
                tensors[name] = _scaled(tensors[name], exponent, plus_one=known is not None and known.plus_one)
        return analyse(self.exam.model, tensors)

    def furthest(self, rescaling: Rescaling, shrunk: Mapping[str, int], *, by_bounds: bool = False) -> Furthest | None:
        """The value of a rescaling that is furthest beyond what it may be; None where nothing is known of one.

        With a trace that measured one of the values, what was measured counts, with a margin.

        Args:
            rescaling: The rescaling.
            shrunk: Name of a value -> bits that other rescalings have taken from it.
            by_bounds: Whether what is proved counts although a trace measured less.
        """
        traced = not by_bounds and any(name in self._measured for name in rescaling.values)
        margin = MARGIN if traced else 1.0
        basis = "measured" if traced else "proved"
        found = []
        names = frozenset(rescaling.values)
        for item in (self._as_traced if traced else self._as_it_is).values:
            if item.value.name in names:
                if item.bound is None:
                    return None
                reach = math.ldexp(item.bound, -shrunk.get(item.value.name, 0))
                found.append(Furthest(item, reach, item.value.limit / margin, basis))
        return max(found, key=lambda one: one.reach / one.room, default=None)

    def square(self, reader: Reader) -> Square:
        """The mean square of what a norm reads, measured at its least, or cautiously estimated.

        Args:
            reader: The norm.
        """
        modules = [value.module for value in self.exam.model.values if value.source is reader.source and value.module]
        for module in modules:
            measured = self._measured.get(module)
            if measured is not None and measured.mean_square_min is not None:
                return Square(measured.mean_square_min, "at its least in the trace")
        rms = cautious_rms(reader.source, self._tensors)
        return Square(rms * rms, "a cautious estimate from the weights; --calibration measures it")

    def _by_canonical_name(self) -> dict[str, Measured]:
        """What was measured, by what the declarations call the module: a trace has transformers' own names."""
        if self.calibration is None:
            return {}
        model, found = self.exam.model, dict[str, Measured]()
        for name, measured in self.calibration.modules.items():
            for layout in (None, *model.layouts):
                known = model.canonical(f"{name}.", layout).removesuffix(".")
                found[known] = measured.merge(found[known]) if known in found else measured
        return found


def _scaled(tensor: MeasuredTensor, exponent: int, *, plus_one: bool) -> MeasuredTensor:
    """The tensor as the plan would store it."""
    known = tensor.elements
    if plus_one:
        stats = replace(
            tensor.stats,
            minimum=_moved(tensor.stats.minimum, exponent),
            maximum=_moved(tensor.stats.maximum, exponent),
            squares=None,
        )
        moved = None if known is None else array("f", (math.ldexp(1 + value, exponent) - 1 for value in known))
        return replace(tensor, info=replace(tensor.info, dtype="F32"), stats=stats, elements=moved)
    larger = None if known is None else array("d", (math.ldexp(value, exponent) for value in known))
    return replace(tensor, stats=_times(tensor.stats, exponent), elements=larger)


def _moved(value: float | None, exponent: int) -> float | None:
    return None if value is None else array("f", [math.ldexp(1 + value, exponent) - 1])[0]  # stored in float32


def _times(stats: TensorStats, exponent: int) -> TensorStats:
    def power(value: float | None, times: int = 1) -> float | None:
        return None if value is None else value * 2.0 ** (times * exponent)

    return replace(
        stats,
        minimum=power(stats.minimum),
        maximum=power(stats.maximum),
        squares=None if stats.squares is None else stats.squares * Fraction(4) ** exponent,
        row_l1_max=power(stats.row_l1_max),
        row_squares_max=power(stats.row_squares_max, 2),
    )
