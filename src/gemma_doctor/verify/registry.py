"""The rules of a verification."""

from __future__ import annotations

from gemma_doctor.rule import Rule
from gemma_doctor.verify.evidence import Evidence
from gemma_doctor.verify.rules import (
    gd401_fp16_forward_overflow,
    gd402_fp16_backward_overflow,
    gd403_fp16_silent_saturation,
    gd404_fp16_output_drift,
    gd405_fp16_loss_scale_window,
)

__all__ = ["RULES"]

RULES: tuple[Rule[Evidence], ...] = (
    gd401_fp16_forward_overflow.RULE,
    gd402_fp16_backward_overflow.RULE,
    gd403_fp16_silent_saturation.RULE,
    gd404_fp16_output_drift.RULE,
    gd405_fp16_loss_scale_window.RULE,
)
"""Every rule, by id. Literal on purpose: nothing is registered by being imported."""
