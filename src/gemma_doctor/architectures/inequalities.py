"""A proof's result, and the inequalities of single steps; :mod:`gemma_doctor.architectures.bounds` has the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gemma_doctor.architectures.channels import Channels, larger, summed, times
from gemma_doctor.architectures.expressions import AfterNorm, Dot, Pooled, Product, Repeated, Rotated, Slice
from gemma_doctor.tensors import TensorStats

__all__ = [
    "Bound",
    "Proof",
    "Unproven",
    "UnprovenError",
    "added",
    "euclidean",
    "largest_gain",
    "moved",
    "multiplied",
    "pair",
    "usable",
]


@dataclass(frozen=True, slots=True)
class Bound:
    """A proved bound on an activation.

    Attributes:
        peak: No element is larger in magnitude.
        norm: No position's vector over channels has a larger Euclidean norm.
        why: What proves it, in a few words.
        channels: How large each channel can become; None where only the largest one is known.
    """

    peak: float
    norm: float
    why: str
    channels: Channels | None = None


@dataclass(frozen=True, slots=True)
class Unproven:
    """Nothing can be said: the expression is unbounded, or a tensor that it needs cannot be used.

    Attributes:
        why: The reason, in a few words.
    """

    why: str


Proof: TypeAlias = Bound | Unproven


class UnprovenError(Exception):
    """Why nothing can be said; becomes an :class:`Unproven`."""


def moved(source: Pooled | Repeated | Slice | Rotated, inner: Bound) -> Bound:
    """Elements that are mixed, repeated, left out or turned."""
    match source:
        case Pooled():
            return inner
        case Repeated():
            norm = math.sqrt(source.times) * inner.norm
            return Bound(inner.peak, norm, f"{source.times} heads, each a mix of values: {inner.why}")
        case Slice():
            return Bound(inner.peak, min(inner.norm, math.sqrt(source.channels) * inner.peak), inner.why)
        case Rotated():
            return Bound(min(math.sqrt(2) * inner.peak, inner.norm), inner.norm, f"rotated: {inner.why}")


def pair(source: Product | Dot, left: Bound, right: Bound) -> Bound:
    """Two vectors multiplied, channel by channel or to a dot product."""
    if isinstance(source, Dot):
        score = times(left.norm, right.norm)
        return Bound(score, score, f"||q||_2 {left.norm:.4g} * ||k||_2 {right.norm:.4g}")
    norm = min(times(left.norm, right.peak), times(left.peak, right.norm))
    why = f"max|x| {left.peak:.4g} * max|y| {right.peak:.4g}"
    return Bound(times(left.peak, right.peak), norm, why)


def multiplied(inner: Bound, factor: float, why: str) -> Bound:
    """A vector multiplied by something of at most this magnitude."""
    return Bound(times(inner.peak, factor), times(inner.norm, factor), why, larger(inner.channels, factor))


def added(parts: Sequence[Bound]) -> Bound:
    """A sum: channel by channel where that is known."""
    norm = sum(part.norm for part in parts)
    channels = summed([(part.channels, part.peak) for part in parts])
    if channels is None:
        return Bound(sum(part.peak for part in parts), norm, "the sum of what its writers can add")
    why = f"the sum of what its writers can add to channel {channels.reach.argmax()}"
    return Bound(channels.peak, norm, why, channels)


def largest_gain(stats: TensorStats, source: AfterNorm) -> float:
    """The largest magnitude that a norm multiplies by."""
    if not source.plus_one:
        return stats.absmax or 0.0
    return max(abs(1 + (stats.minimum or 0.0)), abs(1 + (stats.maximum or 0.0)))


def usable(name: str, stats: TensorStats) -> TensorStats:
    """The record, if it bounds every element: a NaN or an infinity is in none of the maxima.

    Raises:
        UnprovenError: If it does not.
    """
    if stats.nan or stats.inf:
        raise UnprovenError(f"{name} holds NaN or infinity")
    if not stats.count:
        raise UnprovenError(f"{name} has no element")
    return stats


def euclidean(stats: TensorStats) -> float:
    """The Euclidean (Frobenius) norm of all elements; inf where their squares leave float64's range."""
    try:
        return math.inf if stats.squares is None else math.sqrt(stats.squares)
    except OverflowError:
        return math.inf
