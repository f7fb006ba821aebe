"""Bounds that the weights prove: how large a convolution's input and output can become, whatever the image.

Notation: x is the vector over channels at one position, W_j the row of output channel j (flattened over its inputs
and kernel positions), t the number of kernel positions, C a number of channels. Two numbers bound an activation:
``peak`` >= max |x_c| and ``norm`` >= ||x||_2 at every position. Zero padding adds nothing to either.

============  ==================================================  ==================================================
expression    peak                                                norm
============  ==================================================  ==================================================
Within        limit                                               sqrt(C) * limit
AfterNorm     sqrt(C) * max|g|                                    sqrt(C) * max|g|
Linear        min(peak * max||W_j||_1,                            sqrt(t) * norm * ||W||_F
              sqrt(t) * norm * max||W_j||_2)
 depthwise    peak * max||W_j||_1                                 sqrt(t) * norm * max||W_j||_2
Scaled        peak * max|g|                                       norm * max|g|
Sum           sum of peaks                                        sum of norms
Joined        largest peak                                        sqrt(sum of norm^2)
Pooled        peak                                                norm
Repeated      peak                                                sqrt(times) * norm
============  ==================================================  ==================================================

* AfterNorm: x_c = g_c * u_c / sqrt(mean(u^2) + eps), and sum u_c^2 <= C * (mean(u^2) + eps), so that
  ||x||_2 <= max|g| * sqrt(C); no element exceeds the norm. GELU, SiLU and ReLU never grow a value.
* Linear: Hoelder, |W_j . x| <= ||W_j||_1 * max|x|, and Cauchy-Schwarz over the t positions of a patch, whose squared
  norm is at most t * norm^2; ||W x||_2 <= ||W||_F * ||x||_2. A depthwise row reads one channel at t positions:
  sum_c (W_c . x_c)^2 <= max||W_c||_2^2 * sum_c ||x_c||_2^2. (sqrt(t) * peak * max||W_j||_2 is never below
  peak * max||W_j||_1 there.)
* Sum: the triangle inequality. Pooled: a convex mix is never larger, by the convexity of |.| and ||.||_2.

The bounds hold for exact arithmetic; rounding may exceed them by a relative error of the order of the dtype's eps.
Where a normed input feeds a 1x1 convolution this is ``sqrt(C) * max|g| * ||W_j||_2``, a little above
``sqrt(C) * ||W_j * g||_2``, which needs both tensors at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from gemma_doctor.architectures.base import (
    AfterNorm,
    Conv,
    Input,
    Joined,
    Linear,
    Pooled,
    Repeated,
    Scaled,
    Sum,
    Unbounded,
    Within,
)
from gemma_doctor.tensors import TensorStats

__all__ = ["Bound", "Proof", "Prover", "Unproven", "bound", "output_bound"]


@dataclass(frozen=True, slots=True)
class Bound:
    """A proved bound on an activation.

    Attributes:
        peak: No element is larger in magnitude.
        norm: No position's vector over channels has a larger Euclidean norm.
        why: What proves it, in a few words.
    """

    peak: float
    norm: float
    why: str


@dataclass(frozen=True, slots=True)
class Unproven:
    """Nothing can be said: the expression is unbounded, or a tensor that it needs cannot be used.

    Attributes:
        why: The reason, in a few words.
    """

    why: str


Proof: TypeAlias = Bound | Unproven


@dataclass(frozen=True, slots=True)
class Prover:
    """Proves bounds from one set of measured weights, each shared expression once.

    Attributes:
        stats: Finished records by canonical name.
    """

    stats: Mapping[str, TensorStats]
    _proved: dict[int, tuple[Input, Proof]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def bound(self, source: Input) -> Proof:
        """What bounds an expression; see the module's table.

        Args:
            source: The expression.
        """
        known = self._proved.get(id(source))
        if known is None:
            known = self._proved[id(source)] = (source, self._prove(source))  # holding the object keeps its id taken
        return known[1]

    def output(self, conv: Conv, weight: TensorStats) -> Proof:
        """What bounds a convolution's output: its input's bound through its weight, plus its bias.

        Args:
            conv: The convolution. Clear its ``bias`` where the checkpoint rightly lacks it.
            weight: Its weight's record.
        """
        proof = self._through(self.bound(conv.source), "the weight", weight, conv.taps, depthwise=conv.depthwise)
        if conv.bias is None or isinstance(proof, Unproven):
            return proof
        bias = self._tensor(conv.bias)
        if isinstance(bias, Unproven):
            return bias
        shift = bias.absmax or 0.0
        norm = proof.norm + _euclidean(bias)
        return Bound(proof.peak + shift, norm, f"{proof.why}, plus a bias of at most {shift:.4g}")

    def _prove(self, source: Input) -> Proof:
        match source:
            case Within():
                return Bound(source.limit, math.sqrt(source.channels) * source.limit, source.why)
            case AfterNorm():
                return self._after_norm(source)
            case Linear():
                return self._linear(source)
            case Unbounded():
                return Unproven(source.why)
            case _:
                return self._prove_compound(source)

    def _prove_compound(self, source: Scaled | Sum | Joined | Pooled | Repeated) -> Proof:
        match source:
            case Scaled():
                return self._scaled(source)
            case Sum() | Joined():
                return self._many(source)
            case Pooled():
                return self.bound(source.source)
            case Repeated():
                return _repeated(self.bound(source.source), source.times)

    def _tensor(self, name: str) -> TensorStats | Unproven:
        stats = self.stats.get(name)
        return Unproven(f"{name} was not measured") if stats is None else _usable(name, stats)

    def _after_norm(self, source: AfterNorm) -> Proof:
        gain = self._tensor(source.gain)
        if isinstance(gain, Unproven):
            return gain
        largest = gain.absmax or 0.0
        reach = math.sqrt(source.channels) * largest
        return Bound(reach, reach, f"RMS norm {source.gain}: sqrt({source.channels}) * max|gain| {largest:.4g}")

    def _linear(self, source: Linear) -> Proof:
        weight = self._tensor(source.weight)
        if isinstance(weight, Unproven):
            return weight
        return self._through(self.bound(source.source), source.weight, weight, source.taps, depthwise=source.depthwise)

    def _through(self, source: Proof, name: str, weight: TensorStats, taps: int, *, depthwise: bool) -> Proof:
        if isinstance(source, Unproven):
            return source
        usable = _usable(name, weight)
        if isinstance(usable, Unproven):
            return usable
        l1, l2 = weight.row_l1_max, weight.row_l2_max
        if l1 is None or l2 is None:
            return Unproven(f"{name} has no row norms")
        patch = math.sqrt(taps) * source.norm
        by_peak = _times(source.peak, l1)
        if depthwise:
            return Bound(by_peak, _times(patch, l2), f"max|x| {source.peak:.4g} * max||W_j||_1 {l1:.4g}")
        by_norm = _times(patch, l2)
        why = f"max|x| {source.peak:.4g} * max||W_j||_1 {l1:.4g}"
        if by_norm < by_peak:
            why = f"sqrt({taps}) * ||x||_2 {source.norm:.4g} * max||W_j||_2 {l2:.4g}"
        return Bound(min(by_peak, by_norm), _times(patch, _euclidean(weight)), why)

    def _scaled(self, source: Scaled) -> Proof:
        gain, inner = self._tensor(source.gain), self.bound(source.source)
        if isinstance(gain, Unproven):
            return gain
        if isinstance(inner, Unproven):
            return inner
        largest = gain.absmax or 0.0
        return Bound(_times(inner.peak, largest), _times(inner.norm, largest), f"scaled by {source.gain}")

    def _many(self, source: Sum | Joined) -> Proof:
        parts = []
        for part in source.terms if isinstance(source, Sum) else source.parts:
            proof = self.bound(part)
            if isinstance(proof, Unproven):
                return proof
            parts.append(proof)
        if isinstance(source, Sum):
            return Bound(sum(p.peak for p in parts), sum(p.norm for p in parts), "the sum of what its writers can add")
        return Bound(max(p.peak for p in parts), math.hypot(*(p.norm for p in parts)), "several inputs side by side")


def bound(source: Input, stats: Mapping[str, TensorStats]) -> Proof:
    """What bounds one expression; a :class:`Prover` shares the work between several.

    Args:
        source: The expression.
        stats: Finished records by canonical name.
    """
    return Prover(stats).bound(source)


def output_bound(conv: Conv, weight: TensorStats, stats: Mapping[str, TensorStats]) -> Proof:
    """What bounds one convolution's output; a :class:`Prover` shares the work between several.

    Args:
        conv: The convolution.
        weight: Its weight's record.
        stats: Finished records by canonical name.
    """
    return Prover(stats).output(conv, weight)


def _repeated(proof: Proof, times: int) -> Proof:
    if isinstance(proof, Unproven):
        return proof
    return Bound(proof.peak, math.sqrt(times) * proof.norm, f"{times} heads, each a mix of values: {proof.why}")


def _usable(name: str, stats: TensorStats) -> TensorStats | Unproven:
    """The record, if it bounds every element: a NaN or an infinity is in none of the maxima."""
    if stats.nan or stats.inf:
        return Unproven(f"{name} holds NaN or infinity")
    return stats if stats.count else Unproven(f"{name} has no element")


def _euclidean(stats: TensorStats) -> float:
    """The Euclidean (Frobenius) norm of all elements; inf where their squares leave float64's range."""
    try:
        return math.inf if stats.squares is None else math.sqrt(stats.squares)
    except OverflowError:
        return math.inf


def _times(a: float, b: float) -> float:
    """Their product; 0 where one is 0, even if the other bound has left float64's range."""
    return a * b if a and b else 0.0
