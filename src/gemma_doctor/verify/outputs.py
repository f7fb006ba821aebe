"""What modules return: the reference's outputs kept, and another run's compared with them as they come.

Two models are never in memory at once: the reference runs first, its modules' outputs wait in the host's memory, and
each later run is compared module by module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isnan
from typing import Any

import torch
from torch import Tensor, nn

from gemma_doctor.verify.passing import unseen

__all__ = ["Call", "Compared", "Comparing", "Keeping", "Kept", "seeing", "worst"]

_NEGLIGIBLE = 0.01
"""A position counts as collapsed if its reference has at least this share of the mean length."""

_FEWEST = 8
"""Channels of a position: fewer numbers may well all be zero by chance."""

Call = tuple[str, int]
"""A module, and which of its calls."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One output of the reference.

    Attributes:
        kind: The module's class.
        output: It, float32, in the host's memory.
        peak: Its largest magnitude.
        mean_square_min: Least mean square over the channels at any position; None where there are
            no channels.
    """

    kind: str
    output: Tensor
    peak: float
    mean_square_min: float | None


@dataclass(frozen=True, slots=True)
class Compared:
    """One output beside the reference's.

    Attributes:
        module: The module.
        kind: Its class.
        absmax: Its largest finite magnitude.
        nonfinite: NaNs and infinities in it.
        error: ||y' - y|| / ||y||; not finite where y' is not.
        collapsed: Share of positions that are zero and not (nearly) zero in the reference.
    """

    module: str
    kind: str
    absmax: float
    nonfinite: int
    error: float
    collapsed: float


@dataclass(slots=True)
class Keeping:
    """Keeps every module's output. ``kept`` is filled while the model runs, in the order of execution."""

    kept: dict[Call, Kept] = field(default_factory=dict)

    def __call__(self, name: str, nth: int, module: nn.Module, output: Tensor) -> None:
        """Keep one output."""
        wide = output.detach().float()
        copied = wide.to("cpu", copy=True)  # what the module returned may be written to later
        self.kept[name, nth] = Kept(
            type(module).__name__, copied, float(wide.abs().amax()), _mean_square_min(module, wide)
        )


@dataclass(slots=True)
class Comparing:
    """Compares every module's output with the reference's; nothing waits for the device until :meth:`results`.

    Attributes:
        reference: What the reference returned.
    """

    reference: Mapping[Call, Kept]
    _seen: list[tuple[str, str, Tensor]] = field(default_factory=list)

    def __call__(self, name: str, nth: int, module: nn.Module, output: Tensor) -> None:
        """Compare one output."""
        kept = self.reference.get((name, nth))
        if kept is None or kept.output.shape != output.shape:
            return
        true, seen = kept.output.to(output.device, non_blocking=True), output.detach().float()
        norm = torch.linalg.vector_norm
        error = norm(seen - true) / norm(true).clamp_min(torch.finfo(torch.float32).tiny)
        finite = seen.isfinite()
        figures = [torch.where(finite, seen, 0).abs().amax(), (~finite).sum(), error, _collapsed(seen, true)]
        self._seen.append((name, type(module).__name__, torch.stack([figure.double() for figure in figures])))

    def results(self) -> list[Compared]:
        """All comparisons in the order of execution; waits for the device."""
        if not self._seen:
            return []
        rows = torch.stack([figures.to(self._seen[0][2].device) for *_, figures in self._seen]).tolist()
        return [
            Compared(name, kind, absmax, int(nonfinite), error, collapsed)
            for (name, kind, _), (absmax, nonfinite, error, collapsed) in zip(self._seen, rows, strict=True)
        ]


@contextmanager
def seeing(model: nn.Module, see: Keeping | Comparing) -> Iterator[None]:
    """While it lasts, ``see`` is given every module's output but those that only pass on what they were given.

    Args:
        model: The model that runs.
        see: Who is told.
    """
    calls: Counter[str] = Counter()
    passed: list[Tensor] = []

    def hook(name: str, module: nn.Module, output: object) -> None:
        tensor = next(_floats(output), None)
        nth = calls[name]
        calls[name] += 1
        if tensor is None or not tensor.numel() or any(tensor is last for last in passed):
            return
        passed[:] = [tensor]
        with unseen(), torch.no_grad():
            see(name, nth, module, tensor)

    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: hook(name, module, output))
        for name, module in model.named_modules()
        if not isinstance(module, nn.Identity)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def worst(compared: Sequence[Compared]) -> dict[str, Compared]:
    """Each module's call with the largest error (NaN is the largest), in the order of execution of these calls."""
    found: dict[str, Compared] = {}
    for one in compared:
        known = found.get(one.module)
        if known is None or (isnan(one.error), one.error) > (isnan(known.error), known.error):
            found.pop(one.module, None)
            found[one.module] = one
    return found


def _floats(output: Any) -> Iterator[Tensor]:  # noqa: ANN401  # what a module may return
    """The floating-point tensors of an output, the main one first; a loss is none."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.ndim:
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _floats(value)


def _collapsed(seen: Tensor, true: Tensor) -> Tensor:
    """The share of positions (vectors along the channels) that are zero, and not in the reference."""
    shares = [_zeroed(seen, true, axis) for axis in _channels(true)]
    return torch.stack(shares).amax() if shares else torch.zeros((), device=true.device)


def _channels(output: Tensor) -> Iterator[int]:
    """The axes that may be the channels: the last, and of pictures the second."""
    if output.shape[-1] >= _FEWEST:
        yield -1
    if output.ndim == 4 and output.shape[1] >= _FEWEST:  # noqa: PLR2004  # axes of a batch of pictures
        yield 1


def _zeroed(seen: Tensor, true: Tensor, axis: int) -> Tensor:
    length = torch.linalg.vector_norm(true, dim=axis)
    counts = (length > 0) & (length >= _NEGLIGIBLE * length.square().mean().sqrt())
    return ((seen == 0).all(axis) & counts).float().mean()


def _mean_square_min(module: nn.Module, output: Tensor) -> float | None:
    """The least mean square over the channels: a convolution's second axis, the last one of a batch of sequences."""
    convolution = isinstance(module, (nn.Conv1d, nn.Conv2d))
    if not convolution and output.ndim != 3:  # noqa: PLR2004  # a batch of sequences
        return None
    return float(output.square().mean(1 if convolution else -1).amin())
