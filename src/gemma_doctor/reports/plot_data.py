"""What a plot shows: the largest magnitude of every weight of a scan, or of every operation of a verification."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gemma_doctor.records import Report
from gemma_doctor.reports.order import in_model_order, towers
from gemma_doctor.tensors import MeasuredTensor
from gemma_doctor.verifications import Activation

__all__ = ["Callout", "Dots", "Picture", "picture"]

_ROLES: Mapping[str, tuple[str, str]] = {
    "linear": ("o", "#64748b"),
    "norm": ("^", "#7c3aed"),
    "embedding": ("s", "#c2410c"),
    "bias": ("_", "#0e7490"),
    "other": ("D", "#9d174d"),
    "conv": ("x", "#15803d"),
}
_WIDER = ", not float16"
_PHASES: Mapping[str, tuple[str, str]] = {
    f"load{_WIDER}": ("s", "#b4dde6"),
    f"forward{_WIDER}": ("o", "#cbd5e1"),
    f"backward{_WIDER}": ("^", "#ddd6fe"),
    "load": ("s", "#0e7490"),
    "forward": ("o", "#334155"),
    "backward": ("^", "#7c3aed"),
}
"""Marker and colour of each kind; the last is drawn on top. What float16's limits do not bound is pale."""

_LARGE = 16  # no ordinary layer has such convolution weights
_CALLOUTS = 3  # largest convolutions that are named


@dataclass(frozen=True, slots=True)
class Dots:
    """The points of one kind.

    Attributes:
        label: The kind, for the legend.
        marker: matplotlib's name of the marker.
        colour: Its colour.
        sizes: (place from the left, largest magnitude), zeros left out.
        zeros: Places of what is zero.
        broken: Places of what holds NaN or inf.
    """

    label: str
    marker: str
    colour: str
    sizes: tuple[tuple[int, float], ...]
    zeros: tuple[int, ...]
    broken: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Callout:
    """A name beside a point.

    Attributes:
        place: Where it is from the left.
        size: Its magnitude; None where it is NaN or inf.
        words: The name.
    """

    place: int
    size: float | None
    words: str


@dataclass(frozen=True, slots=True)
class Picture:
    """All of a plot but its title and its limits.

    Attributes:
        across: What lies along the horizontal axis.
        count: How many places that has.
        dots: The points, by kind.
        parts: (first place, place after the last, name) of each part of the axis.
        callouts: The points that are named.
    """

    across: str
    count: int
    dots: tuple[Dots, ...]
    parts: tuple[tuple[int, int, str], ...]
    callouts: tuple[Callout, ...]


def picture(report: Report) -> Picture:
    """What the plot of a report shows."""
    return _weights(report) if report.verification is None else _operations(report)


def _weights(report: Report) -> Picture:
    ordered = in_model_order(report.tensors)
    marks = [(one.role, one.stats.absmax, one.stats.nan + one.stats.inf) for one in ordered]
    return Picture(
        across="tensors in model order",
        count=len(ordered),
        dots=tuple(_dots(_ROLES, marks)),
        parts=tuple(towers(ordered)),
        callouts=tuple(_largest(ordered)),
    )


def _operations(report: Report) -> Picture:
    """Run after run, and in each the parameters as they were cast, and the operations in the order of execution."""
    runs = report.verification.runs if report.verification else ()
    ordered: list[Activation] = []
    parts, callouts = [], []
    for run in runs:
        start = len(ordered)
        ordered += sorted((one for one in report.activations if one.run == run.modality), key=lambda one: one.step)
        parts.append((start, len(ordered), f"{run.modality} run"))
        if run.first_failure is not None:
            failed = run.first_failure.activation
            same = [(one.phase, one.module, one.op) == (failed.phase, failed.module, failed.op) for one in ordered]
            words = f"{_ending(failed.module)}  {failed.op}"
            callouts += [Callout(place, None, words) for place in range(start, len(ordered)) if same[place]][:1]
    marks = [(f"{one.phase}{'' if one.dtype == 'F16' else _WIDER}", one.peak, one.nonfinite) for one in ordered]
    return Picture(
        across="parameters, then operations in the order of execution",
        count=len(ordered),
        dots=tuple(_dots(_PHASES, marks)),
        parts=tuple(parts),
        callouts=tuple(callouts),
    )


def _dots(kinds: Mapping[str, tuple[str, str]], marks: Sequence[tuple[str, float | None, int]]) -> Iterator[Dots]:
    """The points of each kind that occurs.

    Args:
        kinds: Marker and colour of each kind.
        marks: Kind, largest magnitude, and how many are NaN or inf, of each place.
    """
    for kind, (marker, colour) in kinds.items():
        own = [(place, size, bad) for place, (of, size, bad) in enumerate(marks) if of == kind]
        if own:
            sizes = tuple((place, size) for place, size, bad in own if size and not bad)
            zeros = tuple(place for place, size, bad in own if size == 0 and not bad)
            yield Dots(kind, marker, colour, sizes, zeros, tuple(place for place, _, bad in own if bad))


def _largest(ordered: Sequence[MeasuredTensor]) -> Iterator[Callout]:
    """The largest convolutions, if they are large; those whose names would overlap are left out."""
    convs = [(tensor.stats.absmax or 0.0, place) for place, tensor in enumerate(ordered) if tensor.role == "conv"]
    taken: list[float] = []
    for size, place in sorted(convs, reverse=True):
        if size < _LARGE or len(taken) == _CALLOUTS:
            return
        if all(other > 2 * size for other in taken):
            taken.append(size)
            yield Callout(place, size, f"{_ending(ordered[place].info.name)}  {size:g}")


def _ending(name: str) -> str:
    """The last components of a name, which tell convolutions apart."""
    return ".".join(name.removesuffix(".weight").split(".")[-5:])
