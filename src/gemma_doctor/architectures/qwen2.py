"""Qwen 2 and 2.5: queries, keys and values have biases (transformers 5.23, modeling_qwen2.py)."""

from __future__ import annotations

from gemma_doctor.architectures.decoders import Form, decoder_family

__all__ = ["FAMILY"]

FAMILY = decoder_family(
    Form(
        family="qwen2",
        stem="Qwen2",
        norm="Qwen2RMSNorm",
        rows=151_936,
        width=4096,
        inner=22_016,
        layers=32,
        heads=32,
        groups=32,
        head=None,
        tied=False,
        biased=("q_proj", "k_proj", "v_proj"),
    ),
    "qwen2",
)
