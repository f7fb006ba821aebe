"""How far a model's output lies from the reference's."""

from __future__ import annotations

import math
import sys

from torch import Tensor

from gemma_doctor.verifications import Drift

__all__ = ["drift"]

_ROWS = 512
"""Positions compared at a time: 512 rows of 262,144 float32 logits are 0.5 GB."""


def drift(reference: Tensor, logits: Tensor) -> Drift:
    """Kullback-Leibler divergence, top-1 agreement and relative error.

    Args:
        reference: The reference's logits, shape (..., classes), any floating dtype, any device.
        logits: The other run's, of the same shape.

    Returns:
        KL(reference || run) in nats, mean over all positions, computed in float64 from log-softmax, and
        ||run - reference|| / ||reference||, also in float64; None where they are not finite.
    """
    classes = reference.shape[-1]
    total, same, rows = 0.0, 0, reference.numel() // classes
    off, length = 0.0, 0.0
    pairs = zip(reference.reshape(-1, classes).split(_ROWS), logits.reshape(-1, classes).split(_ROWS), strict=True)
    for true, seen in pairs:
        exact, other = true.to(seen.device).double(), seen.double()
        off += float((other - exact).square().sum())
        length += float(exact.square().sum())
        p, q = exact.log_softmax(-1), other.log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
    kl, error = total / rows, math.sqrt(off) / max(math.sqrt(length), sys.float_info.min)
    return Drift(max(kl, 0.0) if math.isfinite(kl) else None, same / rows, error if math.isfinite(error) else None)
