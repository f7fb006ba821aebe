"""Small random networks in float64, and the records that a scan would make of their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from gemma_doctor.architectures.expressions import AfterNorm, Input, Linear, Repeated, Scaled, Within
from gemma_doctor.tensors import TensorStats

Doubles = npt.NDArray[np.float64]

SIDE = 4
"""Height and width of every image."""

EPS = 1e-6


def stats_of(array: Doubles) -> TensorStats:
    """A finished record; sums are rounded, which is enough to compare magnitudes."""
    sound = np.where(np.isfinite(array), array, 0)
    rows = sound.reshape(len(array), -1) if array.ndim > 1 else None
    with np.errstate(over="ignore"):
        squares = sound**2
        total = float(squares.sum())
    return TensorStats(
        count=array.size,
        nan=int(np.isnan(array).sum()),
        inf=int(np.isinf(array).sum()),
        minimum=float(sound.min()),
        maximum=float(sound.max()),
        squares=None if math.isinf(total) else Fraction(total),
        row_l1_max=None if rows is None else float(np.abs(rows).sum(axis=1).max()),
        row_squares_max=None if rows is None else float(squares.reshape(rows.shape).sum(axis=1).max()),
    )


def _gelu(x: Doubles) -> Doubles:
    grown: Doubles = x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return grown


def rms_norm(x: Doubles, gain: Doubles) -> Doubles:
    """As timm's rms_norm2d: over the channels of one position."""
    scaled: Doubles = x / np.sqrt(np.mean(x**2, axis=0) + EPS) * gain[:, None, None]
    return scaled


def convolve(x: Doubles, weight: Doubles, *, depthwise: bool) -> Doubles:
    """A convolution with zero padding that keeps the image's size (odd kernels)."""
    size = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    if depthwise:
        return np.asarray(np.einsum("chwkl,ckl->chw", windows, weight[:, 0]))
    return np.asarray(np.einsum("chwkl,ockl->ohw", windows, weight))


@dataclass
class Network:
    """A random network: an expression, the weights it names, and one output that it can have.

    Attributes:
        rng: Where the numbers come from.
        weights: Arrays by name.
    """

    rng: np.random.Generator
    weights: dict[str, Doubles] = field(default_factory=dict)

    def tensor(self, *shape: int) -> tuple[str, Doubles]:
        """A new weight of some magnitude, and its name."""
        name = f"weight{len(self.weights)}"
        self.weights[name] = self.rng.normal(0, 10 ** self.rng.uniform(-2, 2), shape)
        return name, self.weights[name]

    def leaf(self, channels: int, *, normed: bool) -> tuple[Input, Doubles]:
        """Pixels, or the output of a norm, perhaps through GELU."""
        shape = (channels, SIDE, SIDE)
        if not normed:
            limit = float(10 ** self.rng.uniform(-1, 2))
            return Within(limit, channels, "pixels"), self.rng.uniform(-limit, limit, shape)
        name, gain = self.tensor(channels)
        x = self.rng.normal(0, 10 ** self.rng.uniform(-4, 4), shape) * (self.rng.random(shape) < self.rng.random())
        out = rms_norm(x, gain)
        return AfterNorm(name, channels), _gelu(out) if self.rng.random() < 0.5 else out

    def linear(self, source: Input, x: Doubles, size: int, *, depthwise: bool) -> tuple[Input, Doubles]:
        """A convolution of any kind."""
        inputs = x.shape[0]
        outputs = inputs if depthwise else int(self.rng.integers(1, 6))
        name, weight = self.tensor(outputs, 1 if depthwise else inputs, size, size)
        return Linear(name, source, size * size, depthwise), convolve(x, weight, depthwise=depthwise)

    def scaled(self, source: Input, x: Doubles) -> tuple[Input, Doubles]:
        """A layer scale."""
        name, gain = self.tensor(x.shape[0])
        return Scaled(name, source), x * gain[:, None, None]

    def mixed(self, x: Doubles) -> Doubles:
        """Every position a convex mix of the positions of ``x``: pooling, interpolation or attention."""
        mix = self.rng.dirichlet(np.full(SIDE * SIDE, 10 ** self.rng.uniform(-2, 1)), SIDE * SIDE)
        return np.asarray(x.reshape(len(x), -1) @ mix.T).reshape(x.shape)

    def repeated(self, source: Input, x: Doubles, times: int) -> tuple[Input, Doubles]:
        """Heads of multi-query attention."""
        return Repeated(source, times), np.concatenate([self.mixed(x) for _ in range(times)])

    def stats(self) -> dict[str, TensorStats]:
        """What a scan would have measured."""
        return {name: stats_of(array) for name, array in self.weights.items()}


def reach(x: Doubles) -> tuple[float, float]:
    """The largest magnitude, and the largest Euclidean norm over channels."""
    return float(np.abs(x).max()), float(np.sqrt((x**2).sum(axis=0)).max())
