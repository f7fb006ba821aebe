"""What a user may choose among: words only, so that a help needs none of the records.

The first of each tuple is the default, but for :data:`SEVERITIES` and :data:`MODALITIES`, which are orders.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = [
    "DEVICES",
    "FAIL_ON",
    "LOADERS",
    "MODALITIES",
    "MODES",
    "REFERENCES",
    "SEVERITIES",
    "TARGET_DTYPES",
    "Device",
    "FailOn",
    "Loader",
    "Modality",
    "Mode",
    "Reference",
    "Severity",
    "TargetDtype",
    "failing",
]

Severity: TypeAlias = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From grave to light."""

FailOn: TypeAlias = Literal["error", "warning", "note", "never"]
FAIL_ON: tuple[FailOn, ...] = ("error", "warning", "note", "never")
"""The least severity that makes a scan fail."""


def failing(fail_on: FailOn) -> tuple[Severity, ...]:
    """The severities that make a scan fail."""
    return () if fail_on == "never" else SEVERITIES[: SEVERITIES.index(fail_on) + 1]


Loader: TypeAlias = Literal["transformers", "transformers-pre-5.6", "vllm", "llama.cpp"]
LOADERS: tuple[Loader, ...] = ("transformers", "transformers-pre-5.6", "vllm", "llama.cpp")
"""What the tensors must satisfy."""

TargetDtype: TypeAlias = Literal["float16", "bfloat16"]
TARGET_DTYPES: tuple[TargetDtype, ...] = ("float16", "bfloat16")
"""What the weights are judged for."""

Modality: TypeAlias = Literal["text", "image", "audio"]
MODALITIES: tuple[Modality, ...] = ("text", "image", "audio")
"""What a model may be given, in the order in which it is tried."""

Mode: TypeAlias = Literal["half", "amp"]
MODES: tuple[Mode, ...] = ("half", "amp")
"""Weights in float16, or float32 weights under ``torch.autocast``."""

Device: TypeAlias = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda")
"""Where a verification runs the model."""

Reference: TypeAlias = Literal["float32", "none"]
REFERENCES: tuple[Reference, ...] = ("float32", "none")
"""What a verification compares the float16 run with."""
