"""Llama 1 to 3, and what is built like them (transformers 5.23, modeling_llama.py and configuration_llama.py)."""

from __future__ import annotations

from gemma_doctor.architectures.decoders import Form, decoder_family

__all__ = ["FAMILY"]

FAMILY = decoder_family(
    Form(
        family="llama",
        stem="Llama",
        norm="LlamaRMSNorm",
        rows=32_000,
        width=4096,
        inner=11_008,
        layers=32,
        heads=32,
        groups=None,
        head=None,
        tied=False,
        mlp_bias=True,
    ),
    "llama",
)
