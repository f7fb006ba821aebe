"""Qwen 3: queries and keys are normalised head by head (transformers 5.23, modeling_qwen3.py)."""

from __future__ import annotations

from gemma_doctor.architectures.decoders import Form, decoder_family

__all__ = ["FAMILY"]

FAMILY = decoder_family(
    Form(
        family="qwen3",
        stem="Qwen3",
        norm="Qwen3RMSNorm",
        rows=151_936,
        width=4096,
        inner=22_016,
        layers=32,
        heads=32,
        groups=32,
        head=128,
        tied=False,
        head_norms=True,
    ),
    "qwen3",
)
