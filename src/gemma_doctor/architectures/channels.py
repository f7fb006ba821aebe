"""How large each channel can become: what is lost where only the largest channel of every term is known.

A residual stream adds up many vectors, and one channel of it is at most the sum of what each can add *to that channel*.
Their largest channels need not be the same, so that sum is at most the sum of the maxima, and often far below it:

    max_c sum_l |x_lc|  <=  sum_l max_c |x_lc|

Behind an RMS norm with gain g over C channels, |x_c| <= sqrt(C) * |g_c| (the norm's bound, channel by channel), and a
layer scale behind it multiplies each channel by its own |gamma_c|. The vectors x_c / (sqrt(C) * |g_c|) even fit into
the unit ball, all channels together, so that the Euclidean norm behind both is at most sqrt(C) * max_c |g_c * gamma_c|,
and not the product of two maxima.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Channels", "Elements", "after_norm", "larger", "scaled", "summed", "times"]

Elements: TypeAlias = Mapping[str, "array[float]"]
"""Canonical name of a vector -> its elements."""

Doubles: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """How large each channel can become.

    Attributes:
        reach: No element of channel c is larger in magnitude than ``reach[c]``; float64, shape (channels,).
        ball: Whether also sum_c (x_c / reach_c)^2 <= 1: all of them at once reach no further than one alone.
    """

    reach: Doubles
    ball: bool = False

    @property
    def peak(self) -> float:
        """No element is larger; in a ball, no Euclidean norm either."""
        return float(self.reach.max(initial=0.0))


@np.errstate(over="ignore")
def after_norm(gain: Sequence[float], *, plus_one: bool) -> Channels:
    """The channels behind an RMS norm.

    Args:
        gain: Its gain, one number for each channel.
        plus_one: Whether it multiplies by 1 + gain.
    """
    return Channels(math.sqrt(len(gain)) * np.abs(np.asarray(gain) + float(plus_one)), ball=True)


def larger(channels: Channels | None, factor: float) -> Channels | None:
    """All channels multiplied by a number; what is not known stays so."""
    if channels is None or factor == 1.0:
        return channels
    return Channels(_product(channels.reach, abs(factor)), channels.ball)


def scaled(gain: Sequence[float], inner: Channels | None, peak: float) -> Channels | None:
    """The channels behind a layer scale.

    Args:
        gain: What each channel is multiplied by.
        inner: The channels before it; None where only their peak is known.
        peak: That peak.

    Returns:
        The channels; None where the layer scale has another number of them.
    """
    magnitudes = np.abs(np.asarray(gain))
    if inner is None:
        return Channels(_product(magnitudes, peak))
    if len(magnitudes) != len(inner.reach):
        return None
    return Channels(_product(magnitudes, inner.reach), inner.ball)


@np.errstate(over="ignore")
def summed(parts: Sequence[tuple[Channels | None, float]]) -> Channels | None:
    """The channels of a sum.

    Args:
        parts: The channels of each term, None where only its peak is known, and its peak.

    Returns:
        The channels; None where nothing more than peaks is known, or the terms have different numbers of them.
    """
    known = [channels.reach for channels, _ in parts if channels is not None]
    if len({len(reach) for reach in known}) != 1:
        return None
    rest = sum(peak for channels, peak in parts if channels is None)
    return Channels(reduce(np.add, known) + rest)


def times(a: float, b: float) -> float:
    """Their product; 0 where one is 0, even if the other bound has left float64's range."""
    return a * b if a and b else 0.0


@np.errstate(over="ignore", invalid="ignore")
def _product(a: Doubles, b: Doubles | float) -> Doubles:
    """:func:`times`, channel by channel."""
    return np.where((a != 0.0) & (b != 0.0), a * b, 0.0)
