"""``config.json``, which says what the model is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_doctor.checkpoint.documents import read_document
from gemma_doctor.checkpoint.stores import Store

__all__ = ["CONFIG_NAME", "MAX_CONFIG", "read_config"]

CONFIG_NAME = "config.json"
MAX_CONFIG = 10_000_000
"""Most bytes of a config; the largest of known models have some hundred thousand."""


def read_config(store: Store) -> Mapping[str, Any] | None:
    """The config of the checkpoint in ``store``; None where there is none.

    Raises:
        IndexFileError: If there is one that cannot be read; with line and column where there is one.
    """
    try:
        return read_document(store, CONFIG_NAME, MAX_CONFIG)
    except FileNotFoundError:
        return None
