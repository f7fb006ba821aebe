"""Bounds that the weights prove: how large an activation can become, whatever the input.

Notation: x is the vector over channels at one position, W_j the row of output channel j (flattened over its inputs
and kernel positions), t the number of kernel positions, C a number of channels. Two numbers bound an activation:
``peak`` >= max |x_c| and ``norm`` >= ||x||_2 at every position. Zero padding adds nothing to either.

============  ==================================================  ==================================================
expression    peak                                                norm
============  ==================================================  ==================================================
Within        limit                                               sqrt(C) * limit
AfterNorm     sqrt(C) * max|g|                                    sqrt(C) * max|g|
Row           scale * max|E|                                      scale * max||E_i||_2
Linear        min(peak * max||W_j||_1,                            sqrt(t) * norm * ||W||_F
              sqrt(t) * norm * max||W_j||_2)
 depthwise    peak * max||W_j||_1                                 sqrt(t) * norm * max||W_j||_2
 x @ W        norm * min(||W||_F, sqrt(inputs) * max|W|)          norm * ||W||_F
Shifted       peak + max|b|                                       norm + ||b||_2
Scaled        peak * max|g|                                       norm * max|g|
Times         peak * |factor|                                     norm * |factor|
Pooled        peak                                                norm
Repeated      peak                                                sqrt(times) * norm
Slice         peak                                                min(norm, sqrt(C) * peak)
Rotated       min(sqrt(2) * peak, norm)                           norm
Sum           sum of peaks                                        sum of norms
Joined        largest peak                                        sqrt(sum of norm^2)
Either        largest peak                                        largest norm
Product       product of peaks                                    min(norm * peak', peak * norm')
Weighted      weight's peak * peak                                weight's peak * norm
Dot           norm * norm'                                        the same
Matched       the same as the norm                                min(like's norm, sqrt(C) * like's peak)
============  ==================================================  ==================================================

* AfterNorm: x_c = g_c * u_c / sqrt(mean(u^2) + eps), and sum u_c^2 <= C * (mean(u^2) + eps), so that
  ||x||_2 <= max|g| * sqrt(C); no element exceeds the norm. A layer norm subtracts the mean first, which only takes
  from the mean square. GELU, SiLU and ReLU never grow a value.
* Linear: Hoelder, |W_j . x| <= ||W_j||_1 * max|x|, and Cauchy-Schwarz over the t positions of a patch, whose squared
  norm is at most t * norm^2; ||W x||_2 <= ||W||_F * ||x||_2. A depthwise row reads one channel at t positions:
  sum_c (W_c . x_c)^2 <= max||W_c||_2^2 * sum_c ||x_c||_2^2. (sqrt(t) * peak * max||W_j||_2 is never below
  peak * max||W_j||_1 there.) Where the rows run over inputs, a column's norm is at most ||W||_F and at most
  sqrt(inputs) * max|W|. Both bound the sum of magnitudes, and so every partial sum, in whatever order it is made.
* Sum: the triangle inequality, channel by channel where gains are known element by element
  (:mod:`gemma_doctor.architectures.channels`).
* Pooled: a convex mix is never larger, by the convexity of |.| and ||.||_2.
* Rotated: a pair (a, b) becomes (a cos - b sin, b cos + a sin), whose length is that of (a, b).
* Matched: x * rms(like) / rms(x) has at most the root mean square of ``like``, and so its norm.

In ``exact`` arithmetic these are the real numbers. In ``float16`` arithmetic each result is enlarged by what rounding
can add (:mod:`gemma_doctor.architectures.rounding`). Where a normed input feeds a 1x1 convolution the bound is
``sqrt(C) * max|g| * ||W_j||_2``, a little above ``sqrt(C) * ||W_j * g||_2``, which needs both tensors at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gemma_doctor.architectures.base import Conv
from gemma_doctor.architectures.channels import Elements, after_norm, scaled, times
from gemma_doctor.architectures.expressions import (
    AfterNorm,
    Dot,
    Either,
    Input,
    Joined,
    Leaf,
    Linear,
    Matched,
    Mixture,
    Product,
    Row,
    Scaled,
    Shifted,
    Step,
    Sum,
    Times,
    Unbounded,
    Weighted,
    Within,
)
from gemma_doctor.architectures.inequalities import (
    Bound,
    Proof,
    Unproven,
    UnprovenError,
    added,
    euclidean,
    largest_gain,
    moved,
    multiplied,
    pair,
    usable,
)
from gemma_doctor.architectures.rounding import Arithmetic, growth
from gemma_doctor.tensors import TensorStats

__all__ = ["Bound", "Proof", "Prover", "Unproven", "bound", "output_bound"]


@dataclass(frozen=True, slots=True)
class Prover:
    """Proves bounds from one set of measured weights, each shared expression once.

    Attributes:
        stats: Finished records by canonical name.
        arithmetic: ``"exact"``, or ``"float16"`` for what a run in float16 can write, its roundings included.
        elements: Gains and layer scales that are known element by element.
    """

    stats: Mapping[str, TensorStats]
    arithmetic: Arithmetic = "exact"
    elements: Elements = field(default_factory=dict)
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

    def assume(self, source: Input, peak: float) -> None:
        """Take a peak for granted that was measured, where it is below what is proved.

        Args:
            source: The expression.
            peak: The peak. What is proved of the Euclidean norm stays.
        """
        proof = self.bound(source)
        if isinstance(proof, Unproven) or peak < proof.peak:
            norm = proof.norm if isinstance(proof, Bound) else math.inf
            self._proved[id(source)] = (source, Bound(peak, norm, "the peak in the trace"))

    def output(self, conv: Conv, weight: TensorStats) -> Proof:
        """What bounds a convolution's output: its input's bound through its weight, plus its bias.

        Args:
            conv: The convolution. Clear its ``bias`` where the checkpoint rightly lacks it.
            weight: Its weight's record.
        """
        linear = Linear("the weight", conv.source, conv.taps, conv.depthwise)
        try:
            proof = self._linear(linear, self._need(conv.source), usable(linear.weight, weight))
            return proof if conv.bias is None else self._shifted(conv.bias, proof)
        except UnprovenError as reason:
            return Unproven(str(reason))

    def _prove(self, source: Input) -> Proof:
        try:
            proof = self._proof(source)
        except UnprovenError as reason:
            return Unproven(str(reason))
        factor = growth(source, self.arithmetic)
        return multiplied(proof, factor, proof.why)

    def _proof(self, source: Input) -> Bound:
        if isinstance(source, Leaf):
            return self._leaf(source)
        if isinstance(source, Step):
            return self._step(source, self._need(source.source))
        return self._mixture(source)

    def _need(self, source: Input) -> Bound:
        """The bound of a part.

        Raises:
            UnprovenError: If it has none.
        """
        proof = self.bound(source)
        if isinstance(proof, Unproven):
            raise UnprovenError(proof.why)
        return proof

    def _tensor(self, name: str) -> TensorStats:
        """A tensor's record.

        Raises:
            UnprovenError: If it was not measured, or cannot be used.
        """
        stats = self.stats.get(name)
        if stats is None:
            raise UnprovenError(f"{name} was not measured")
        return usable(name, stats)

    def _leaf(self, source: Leaf) -> Bound:
        match source:
            case Within():
                return Bound(source.limit, math.sqrt(source.channels) * source.limit, source.why)
            case AfterNorm():
                return self._after_norm(source)
            case Row():
                return self._row(source)
            case Unbounded():
                raise UnprovenError(source.why)

    def _after_norm(self, source: AfterNorm) -> Bound:
        root = math.sqrt(source.channels)
        if source.gain is None:
            return Bound(root, root, f"RMS norm without gain: sqrt({source.channels})")
        largest, gain = largest_gain(self._tensor(source.gain), source), "|1 + w|" if source.plus_one else "|gain|"
        reach, known = times(root, largest), self.elements.get(source.gain)
        exact = known is not None and len(known) == source.channels
        channels = after_norm(known, plus_one=source.plus_one) if known is not None and exact else None
        why = f"RMS norm {source.gain}: sqrt({source.channels}) * max{gain} {largest:.4g}"
        return Bound(reach, reach, why, channels)

    def _row(self, source: Row) -> Bound:
        table = self._tensor(source.table)
        peak, norm = table.absmax or 0.0, table.row_l2_max
        if norm is None:
            raise UnprovenError(f"{source.table} has no row norms")
        why = f"embedding {source.table}: {source.scale:.4g} * max|e| {peak:.4g}"
        return Bound(times(source.scale, peak), times(source.scale, norm), why)

    def _step(self, source: Step, inner: Bound) -> Bound:
        match source:
            case Linear():
                return self._linear(source, inner, self._tensor(source.weight))
            case Shifted():
                return self._shifted(source.bias, inner)
            case Scaled():
                return self._scaled(source.gain, inner)
            case Times():
                return multiplied(inner, abs(source.factor), f"{source.factor:.4g} * ({inner.why})")
            case _:
                return moved(source, inner)

    def _scaled(self, name: str, inner: Bound) -> Bound:
        largest, known = self._tensor(name).absmax or 0.0, self.elements.get(name)
        proof = multiplied(inner, largest, f"scaled by {name}")
        channels = None if known is None else scaled(known, inner.channels, inner.peak)
        if channels is None:
            return replace(proof, channels=None)
        norm = min(proof.norm, channels.peak) if channels.ball else proof.norm
        return Bound(channels.peak, norm, proof.why, channels)

    def _linear(self, source: Linear, inner: Bound, weight: TensorStats) -> Bound:
        l1, l2, all_l2 = weight.row_l1_max, weight.row_l2_max, euclidean(weight)
        if l1 is None or l2 is None:
            raise UnprovenError(f"{source.weight} has no row norms")
        if source.inputs is not None:
            column = min(all_l2, math.sqrt(source.inputs) * (weight.absmax or 0.0))
            why = f"||x||_2 {inner.norm:.4g} * max column norm {column:.4g}"
            return Bound(times(inner.norm, column), times(inner.norm, all_l2), why)
        patch = math.sqrt(source.taps) * inner.norm
        by_peak, by_norm = times(inner.peak, l1), times(patch, l2)
        why = f"max|x| {inner.peak:.4g} * max||W_j||_1 {l1:.4g}"
        if source.depthwise:
            return Bound(by_peak, by_norm, why)
        if by_norm < by_peak:
            why = f"sqrt({source.taps}) * ||x||_2 {inner.norm:.4g} * max||W_j||_2 {l2:.4g}"
        return Bound(min(by_peak, by_norm), times(patch, all_l2), why)

    def _shifted(self, bias: str, inner: Bound) -> Bound:
        stats = self._tensor(bias)
        shift = stats.absmax or 0.0
        return Bound(
            inner.peak + shift, inner.norm + euclidean(stats), f"{inner.why}, plus a bias of at most {shift:.4g}"
        )

    def _mixture(self, source: Mixture) -> Bound:
        match source:
            case Sum():
                return added([self._need(term) for term in source.terms])
            case Joined():
                parts = [self._need(part) for part in source.parts]
                norm = math.hypot(*(part.norm for part in parts))
                return Bound(max(part.peak for part in parts), norm, "several inputs side by side")
            case Either():
                parts = [self._need(option) for option in source.options]
                largest = max(parts, key=lambda part: part.peak)
                return Bound(largest.peak, max(part.norm for part in parts), largest.why)
            case Matched():
                self._need(source.source)
                like = self._need(source.like)
                norm = min(like.norm, math.sqrt(source.channels) * like.peak)
                return Bound(norm, norm, f"scaled to a norm of at most {norm:.4g}")
            case Product() | Dot():
                return pair(source, self._need(source.left), self._need(source.right))
            case Weighted():
                weight, inner = self._need(source.weight), self._need(source.source)
                return multiplied(inner, weight.peak, f"a coefficient of at most {weight.peak:.4g} * ({inner.why})")


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
