"""How large the outputs of a tensor may become in float16."""

from __future__ import annotations

from gemma_doctor.architectures.base import Model
from gemma_doctor.architectures.generic import rows_are_outputs
from gemma_doctor.tensors import FP16_MAX, Role

__all__ = ["SQUARE_LIMIT", "output_limit"]

SQUARE_LIMIT = 256.0
"""Smallest magnitude whose square, 65536, is inf in float16 (the largest finite float16 is 65504)."""


def output_limit(model: Model, name: str, role: Role) -> float | None:
    """Largest magnitude that the outputs of a weight may have in float16.

    Args:
        model: The model that the checkpoint holds.
        name: The weight's name in the canonical layout.
        role: Its role.

    Returns:
        :data:`SQUARE_LIMIT` where the norm that reads the outputs squares them in their own dtype, 65504 for
        other convolutions and linear layers; None for a tensor whose first axis does not run over outputs.
    """
    known = model.expected.get(name)
    outputs_first = known.rows == "outputs" if known else rows_are_outputs(name)
    if role not in {"conv", "linear"} or not outputs_first:
        return None
    conv = model.convs.get(name)
    squared = conv is not None and conv.norm is not None and conv.norm.squares_in == "input"
    return SQUARE_LIMIT if squared else FP16_MAX
