"""Mistral's text models (transformers 5.23, modeling_mistral.py and configuration_mistral.py)."""

from __future__ import annotations

from gemma_doctor.architectures.decoders import Form, decoder_family

__all__ = ["FAMILY"]

FAMILY = decoder_family(
    Form(
        family="mistral",
        stem="Mistral",
        norm="MistralRMSNorm",
        rows=32_000,
        width=4096,
        inner=14_336,
        layers=32,
        heads=32,
        groups=8,
        head=None,
        tied=False,
        biased=(),
    ),
    "mistral",
)
