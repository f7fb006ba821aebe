"""Gemma 2: norms before and behind attention and feed-forward (transformers 5.23, modeling_gemma2.py)."""

from __future__ import annotations

from gemma_doctor.architectures.decoders import SANDWICH_NORMS, Form, decoder_family

__all__ = ["FAMILY", "FORM"]

FORM = Form(
    family="gemma2",
    stem="Gemma2",
    norm="Gemma2RMSNorm",
    table="Gemma2TextScaledWordEmbedding",
    rows=256_000,
    width=2304,
    inner=9216,
    layers=26,
    heads=8,
    groups=4,
    head=256,
    tied=True,
    norms=SANDWICH_NORMS,
    plus_one=True,
)

FAMILY = decoder_family(FORM, "gemma2")
