"""The search for loss scales at which float16 gradients neither overflow nor vanish."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gemma_doctor.tensors import TensorStats
from gemma_doctor.verifications import LossScales, LossScaleTrial

__all__ = ["START", "search", "tried"]

LARGEST = 24
"""2**24, the largest scale that is tried: torch's GradScaler starts at 2**16 and doubles every 2,000 sound steps."""

START = 16
"""GradScaler's first exponent (torch.amp.GradScaler, init_scale=65536)."""

_VANISHED = 0.5
"""A parameter's gradient has vanished if more than this share of its non-zero elements has become zero."""

_ROUNDING = 2.0**-20
"""A gradient that is smaller than this share of its module's largest is what float32 (2**-24) leaves of a sum that is
zero: a key's bias shifts all scores of a query alike, and a softmax does not feel that."""

Backward = Callable[[float], Mapping[str, TensorStats]]


def search(backward: Backward, reference: Mapping[str, TensorStats], guess: int = START) -> LossScales:
    """Find the window among the powers of two from 1 to 2**24.

    Overflow can only become more with the scale, and underflow only less (scaling by two is exact until it overflows),
    so each side of the window is one change: the upper is sought from the guess on in growing steps and then by
    bisection, the lower by bisection.

    Args:
        backward: The figures of every parameter's gradient at a scale.
        reference: The same of the reference, at scale 1; empty without one: then nothing is known of underflow.
        guess: The exponent of the largest scale that may fit.
    """
    known = _Tried(backward, reference)
    top = _last(known.fits, min(max(guess, 0), LARGEST))
    if top is not None:
        _first(known.shows, top)
    return LossScales(tuple(known.trials[at] for at in sorted(known.trials)))


def tried(backward: Backward, reference: Mapping[str, TensorStats], scale: float) -> LossScales:
    """The one scale that the user names.

    Args:
        backward: As for :func:`search`.
        reference: As for :func:`search`.
        scale: The scale.
    """
    return LossScales((_judge(scale, backward(scale), reference),))


@dataclass(slots=True)
class _Tried:
    backward: Backward
    reference: Mapping[str, TensorStats]
    trials: dict[int, LossScaleTrial] = field(default_factory=dict)

    def fits(self, exponent: int) -> bool:
        """Whether nothing overflows."""
        return self._trial(exponent).outcome != "overflow"

    def shows(self, exponent: int) -> bool:
        """Whether nothing vanishes."""
        return self._trial(exponent).outcome == "sound"

    def _trial(self, exponent: int) -> LossScaleTrial:
        if exponent not in self.trials:
            self.trials[exponent] = _judge(2.0**exponent, self.backward(2.0**exponent), self.reference)
        return self.trials[exponent]


def _judge(scale: float, seen: Mapping[str, TensorStats], reference: Mapping[str, TensorStats]) -> LossScaleTrial:
    # Gradients flow from the end of the model: the last parameter that overflows did so first.
    broken = [name for name, stats in seen.items() if stats.nan + stats.inf and not _broken(reference.get(name))]
    if broken:
        return LossScaleTrial(scale, "overflow", _module(broken[-1]), len(broken))
    meant = _meant(reference)
    lost = {name: _lost(stats, reference[name]) for name, stats in seen.items() if name in meant}
    worst = max(lost, key=lambda name: lost[name], default=None)
    if worst is not None and lost[worst] > _VANISHED:
        vanished = sum(share > _VANISHED for share in lost.values())
        return LossScaleTrial(scale, "underflow", _module(worst), vanished)
    return LossScaleTrial(scale, "sound")


def _broken(stats: TensorStats | None) -> bool:
    return stats is not None and stats.finite < stats.count


def _meant(reference: Mapping[str, TensorStats]) -> set[str]:
    """The parameters whose gradients are more than rounding."""
    largest: dict[str, float] = {}
    for name, stats in reference.items():
        largest[_module(name)] = max(largest.get(_module(name), 0.0), stats.absmax or 0.0)
    return {name for name, stats in reference.items() if (stats.absmax or 0.0) >= _ROUNDING * largest[_module(name)]}


def _lost(seen: TensorStats, true: TensorStats) -> float:
    """The share of the reference's non-zero elements that are zero."""
    there = true.count - true.zeros
    return (seen.zeros - true.zeros) / there if there else 0.0


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _last(holds: Callable[[int], bool], guess: int) -> int | None:
    """The largest exponent from 0 to ``LARGEST`` for which ``holds``, true up to it and false beyond; None for none."""
    low, high, stride = -1, LARGEST + 1, 1
    at = guess
    while low < at < high:
        if holds(at):
            low, at = at, min(at + stride, LARGEST)
        else:
            high, at = at, max(at - stride, 0)
        stride *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low if low >= 0 else None


def _first(holds: Callable[[int], bool], top: int) -> None:
    """Look for the least exponent from 0 to ``top`` for which ``holds``: false below it, true from it on."""
    if holds(0):
        return
    low, high = 0, top
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
