"""Gemma 1 (transformers 5.23, modeling_gemma.py and configuration_gemma.py)."""

from __future__ import annotations

from gemma_doctor.architectures.decoders import Form, decoder_family

__all__ = ["FAMILY", "FORM"]

FORM = Form(
    family="gemma",
    stem="Gemma",
    norm="GemmaRMSNorm",
    table="GemmaTextScaledWordEmbedding",
    rows=256_000,
    width=3072,
    inner=24_576,
    layers=28,
    heads=16,
    groups=16,
    head=256,
    tied=True,
    plus_one=True,
)

FAMILY = decoder_family(FORM, "gemma")
