"""Gemma 2: norms before and behind attention and feed-forward (transformers 5.23, modeling_gemma2.py)."""

from __future__ import annotations

from gemma_doctor.architectures.config import Section
from gemma_doctor.architectures.decoders import SANDWICH_NORMS, Form, Ranges, decoder_family
from gemma_doctor.architectures.sandwich_ranges import Decoder, ranges

__all__ = ["FAMILY", "FORM"]


def _ranges(prefix: str, text: Section, head: str | None, tied: bool) -> Ranges:  # noqa: FBT001  # as Form calls it
    return ranges(Decoder(prefix, text, head, tied, head_norms=False, eager=True))


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
    ranges=_ranges,
)

FAMILY = decoder_family(FORM, "gemma2")
