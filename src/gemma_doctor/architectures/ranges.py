"""Whether a float16 run can overflow, said of every value that it writes, from the weights alone.

A family declares its values (:class:`gemma_doctor.architectures.base.Value`); the prover bounds each; here the bounds
are held against their limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gemma_doctor.architectures.base import Model, Value
from gemma_doctor.architectures.bounds import Bound, Proof, Prover, Unproven
from gemma_doctor.architectures.expressions import AfterNorm, Either, Input, Linear, Row, Scaled, Shifted, Sum
from gemma_doctor.architectures.rounding import elements_in_float16, in_float16
from gemma_doctor.tensors import MeasuredTensor, TensorStats

__all__ = ["ASSUMPTIONS", "BoundedValue", "RangeAnalysis", "Writer", "analyse", "stream_gains"]

ASSUMPTIONS = (
    "the model is what its config declares, run by transformers 5.23 and timm 1.0.31 in float16, without dropout",
    "the eps of every norm is the config's (or timm's 1e-6), and not negative",
    "matrix products and means add up in float32, over at most 65,536 terms, as they do on CUDA and on CPUs",
    "attention is scaled_dot_product_attention, the default, of torch 2.5 or later, or flash: scores stay in float32",
    "attention goes over at most 131,072 positions, and every query may attend to some key",
    "Gemma's norms and its softmax compute in float32, as transformers has it; timm's norms in float16",
    "token ids come from the vocabulary, and pixels from the processor",
)
"""What the bounds take for granted. Eager attention writes its scores in float16: :attr:`RangeAnalysis.scores`."""

_ZERO = TensorStats(count=1, zeros=1, minimum=0.0, maximum=0.0)


@dataclass(frozen=True, slots=True)
class BoundedValue:
    """A value with what is proved of it.

    Attributes:
        value: The value.
        bound: No element is larger in magnitude, roundings included; None where nothing is proved.
        derivation: Which inequality over which tensors proves it, or why nothing is proved.
    """

    value: Value
    bound: float | None
    derivation: str

    @property
    def is_plain(self) -> bool:
        """Whether it is a sum of nothing but embeddings, normalised terms, and one product of such a term each.

        The bound of such a sum is reached when its terms line up; what goes through several matrices is bounded by
        the worst of each of them.
        """
        return all(_is_plain(term) for term in _terms(self.value.source))

    @property
    def eager_only(self) -> bool:
        """Whether only eager attention writes it: the fused kernels, and torch's own fallback, hold scores in float32.

        aten/src/ATen/native/transformers/attention.cpp, _scaled_dot_product_attention_math, casts half inputs up.
        """
        return self.value.kind == "scores"

    @property
    def safe(self) -> bool:
        """Whether it is proved to stay below its limit, whatever the input."""
        return self.bound is not None and self.bound < self.value.limit

    @property
    def bits_beyond(self) -> float | None:
        """By how many bits the bound exceeds the limit, negative below it; None where that is no number."""
        if self.bound is None or not math.isfinite(self.bound) or not self.bound:
            return None
        return math.log2(self.bound / self.value.limit)


@dataclass(frozen=True, slots=True)
class Writer:
    """What adds to a residual stream.

    Attributes:
        tensor: The tensor that decides how much.
        bound: How much it can add.
    """

    tensor: str
    bound: float


@dataclass(frozen=True, slots=True)
class RangeAnalysis:
    """Every value of a model with what is proved of it.

    Attributes:
        values: In the order of writing; empty where the family declares none.
    """

    values: tuple[BoundedValue, ...]
    _prover: Prover

    @property
    def written(self) -> tuple[BoundedValue, ...]:
        """Those that a run writes whatever its attention."""
        return tuple(item for item in self.values if not item.eager_only)

    @property
    def scores(self) -> tuple[BoundedValue, ...]:
        """Those that only eager attention writes."""
        return tuple(item for item in self.values if item.eager_only)

    @property
    def certified(self) -> bool:
        """Whether all that is written fits: nothing overflows forward, whatever the input (:data:`ASSUMPTIONS`)."""
        return bool(self.values) and all(item.safe for item in self.written)

    def streams(self) -> dict[str, BoundedValue]:
        """The residual streams, each by its state that is furthest beyond its limit (or least below it).

        A state of which nothing is proved counts as the furthest.
        """
        worst: dict[str, BoundedValue] = {}
        for item in self.values:
            name = item.value.stream
            if name is not None and (name not in worst or _excess(item) > _excess(worst[name])):
                worst[name] = item
        return worst

    def writers(self, item: BoundedValue) -> tuple[Writer, ...]:
        """What a residual stream is the sum of, the largest first.

        Args:
            item: A state of the stream.
        """
        return tuple(sorted(self._writers(item.value.source), key=lambda writer: -writer.bound))

    def _writers(self, source: Input) -> Iterator[Writer]:
        for term in _terms(source):
            tensor = _decides(term)
            if tensor is not None:
                yield Writer(tensor, self._peak(term))

    def _peak(self, source: Input) -> float:
        proof = self._prover.bound(source)
        return proof.peak if isinstance(proof, Bound) else math.inf


def analyse(
    model: Model, tensors: Mapping[str, MeasuredTensor], peaks: Mapping[str, float] | None = None
) -> RangeAnalysis:
    """Bound every value that a float16 run writes.

    Args:
        model: The declared model.
        tensors: The measured tensors by canonical name, as stored; a loader rounds them to float16.
        peaks: Module -> the peak of its output in a trace, to be taken for granted. Then nothing is proved: the bounds
            hold for the traced inputs.
    """
    stats = {name: in_float16(tensor) for name, tensor in tensors.items()}
    absent = (name for name, known in model.expected.items() if known.need == "stem-bias" and name not in stats)
    elements = {name: known for name, tensor in tensors.items() if (known := elements_in_float16(tensor)) is not None}
    prover = Prover({**stats, **dict.fromkeys(absent, _ZERO)}, "float16", elements)
    found = []
    for value in model.values:
        peak = None if peaks is None or value.module is None else peaks.get(value.module)
        if peak is not None:
            prover.assume(value.source, peak)
        found.append(_bounded(value, prover.bound(value.source)))
    return RangeAnalysis(tuple(found), prover)


def stream_gains(model: Model) -> frozenset[str]:
    """The gains and layer scales right behind which terms of a residual stream are written.

    Known element by element, they bound every channel of the stream by itself
    (:mod:`gemma_doctor.architectures.channels`).

    Args:
        model: The declared model.
    """
    states = (value.source for value in model.values if value.kind == "residual" and value.stream)
    return frozenset(name for source in states for term in _terms(source) for name in _gains(term))


def _gains(term: Input) -> Iterator[str]:
    if isinstance(term, Scaled):
        yield term.gain
        yield from _gains(term.source)
    elif isinstance(term, AfterNorm) and term.gain is not None:
        yield term.gain


def _terms(source: Input) -> Iterator[Input]:
    """What a sum is the sum of; every choice where one of several is added."""
    waiting = [source]
    while waiting:
        match waiting.pop():
            case Sum(terms) | Either(terms):
                waiting += terms
            case term:
                yield term


def _is_plain(term: Input) -> bool:
    match term:
        case AfterNorm() | Row():
            return True
        case Linear(source=Either(options)):
            return all(isinstance(option, AfterNorm | Row) for option in options)
        case Linear(source=source):
            return isinstance(source, AfterNorm | Row)
        case _:
            return False


def _decides(term: Input) -> str | None:
    """The tensor that decides how large a term is; None where none in the checkpoint does."""
    match term:
        case AfterNorm(gain=name):
            return name
        case Row(table=name) | Scaled(gain=name) | Linear(weight=name):
            return name
        case Shifted(source=Linear(weight=name)):
            return name
        case _:
            return None


def _bounded(value: Value, proof: Proof) -> BoundedValue:
    if isinstance(proof, Unproven):
        return BoundedValue(value, None, proof.why)
    return BoundedValue(value, proof.peak, proof.why)


def _excess(item: BoundedValue) -> float:
    return math.inf if item.bound is None else item.bound / item.value.limit
