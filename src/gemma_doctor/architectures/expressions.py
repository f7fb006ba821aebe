"""What an activation is made of: a closed union of expressions over tensors, in which families are declared.

An expression describes the vectors over channels that a model can write at one position, not their numbers. What
bounds them follows from the measured weights (:mod:`gemma_doctor.architectures.bounds`). Activations that never grow
a value (GELU, SiLU, ReLU) and masks are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "AfterNorm",
    "Dot",
    "Either",
    "Input",
    "Joined",
    "Leaf",
    "Linear",
    "Matched",
    "Mixture",
    "Pooled",
    "Product",
    "Repeated",
    "Rotated",
    "Row",
    "Scaled",
    "Shifted",
    "Slice",
    "Step",
    "Sum",
    "Times",
    "Unbounded",
    "Weighted",
    "Within",
]


@dataclass(frozen=True, slots=True)
class Within:
    """Every element of ``channels`` lies in [-limit, limit], by construction (pixels after rescaling, say)."""

    limit: float
    channels: int
    why: str


@dataclass(frozen=True, slots=True)
class AfterNorm:
    """The output of an RMS norm (or, but for its bias, a layer norm) over ``channels``, perhaps through an activation.

    At one position its Euclidean norm is at most sqrt(channels) * max|gain|, and so is each element. The gain is 1
    where it is None, and 1 + w where ``plus_one`` says so.
    """

    gain: str | None
    channels: int
    plus_one: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table ``table``, times ``scale``: an embedding."""

    table: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Unbounded:
    """Nothing proves a bound here."""

    why: str


@dataclass(frozen=True, slots=True)
class Linear:
    """The output of a convolution or projection ``weight``, without bias, of ``source``.

    ``taps`` is the number of kernel positions. Where the product is ``x @ W``, so that the weight's rows run over its
    inputs, ``inputs`` is their number. A gated unit (GLU) behind it is covered as well: half of the channels times
    numbers from 0 to 1 is never larger.
    """

    weight: str
    source: Input
    taps: int = 1
    depthwise: bool = False
    inputs: int | None = None


@dataclass(frozen=True, slots=True)
class Shifted:
    """``source`` plus the vector ``bias``."""

    bias: str
    source: Input


@dataclass(frozen=True, slots=True)
class Scaled:
    """``source`` multiplied, channel by channel, by the vector ``gain`` (a layer scale)."""

    gain: str
    source: Input


@dataclass(frozen=True, slots=True)
class Times:
    """``source`` multiplied by a constant."""

    factor: float
    source: Input


@dataclass(frozen=True, slots=True)
class Pooled:
    """Averages, interpolation or attention over positions of ``source``: a convex mix, never larger.

    Per-channel maxima stay bounded, and so does the Euclidean norm at a position (convexity of the norm).
    """

    source: Input


@dataclass(frozen=True, slots=True)
class Repeated:
    """``times`` vectors side by side, each a convex mix of ``source``'s: the heads of multi-query attention."""

    source: Input
    times: int


@dataclass(frozen=True, slots=True)
class Slice:
    """Some ``channels`` of ``source``: one head."""

    source: Input
    channels: int


@dataclass(frozen=True, slots=True)
class Rotated:
    """``source`` with pairs of channels turned by an angle: rotary position embedding."""

    source: Input


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum of several terms: a residual stream and its writers."""

    terms: tuple[Input, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """Several sources laid side by side along the channels."""

    parts: tuple[Input, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of several sources, at each position: the embedding of a word, or the soft token of an image."""

    options: tuple[Input, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """Both sources multiplied channel by channel: a gated unit."""

    left: Input
    right: Input


@dataclass(frozen=True, slots=True)
class Weighted:
    """``source`` multiplied, as a whole, by one element of ``weight``: a coefficient that is itself computed."""

    weight: Input
    source: Input


@dataclass(frozen=True, slots=True)
class Dot:
    """The dot product of two vectors: a score of attention."""

    left: Input
    right: Input


@dataclass(frozen=True, slots=True)
class Matched:
    """``source`` scaled to a root mean square that is at most that of ``like``, over as many ``channels``."""

    source: Input
    like: Input
    channels: int


Leaf: TypeAlias = Within | AfterNorm | Row | Unbounded
"""Expressions of tensors alone."""

Step: TypeAlias = Linear | Shifted | Scaled | Times | Pooled | Repeated | Slice | Rotated
"""Expressions of one source."""

Mixture: TypeAlias = Sum | Joined | Either | Product | Weighted | Dot | Matched
"""Expressions of several sources."""

Input: TypeAlias = Leaf | Step | Mixture
