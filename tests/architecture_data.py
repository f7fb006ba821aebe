"""The names, shapes and configs of real models, from ``data/architectures.json.xz`` (see ``data/README.md``)."""

from __future__ import annotations

import json
import lzma
from functools import lru_cache
from pathlib import Path
from typing import Any

MODELS = (
    "gemma-3-270m",
    "gemma-3-1b",
    "gemma-3-4b",
    "gemma-3-12b",
    "gemma-3-27b",
    "gemma-3n-E2B",
    "gemma-3n-E4B",
)


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    packed = Path(__file__).with_name("data") / "architectures.json.xz"
    data: dict[str, Any] = json.loads(lzma.decompress(packed.read_bytes()))
    return data


def config(model: str) -> dict[str, Any]:
    """A model's config."""
    found: dict[str, Any] = _data()["models"][model]["config"]
    return found


def manifest(model: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """A model's tensors: name -> (shape, module class)."""
    return {name: (tuple(shape), kind) for name, shape, kind in _data()["models"][model]["tensors"]}


def total_bytes(model: str) -> int:
    """What a model's tensors take in bfloat16."""
    found: int = _data()["models"][model]["total_bytes"]
    return found


def merged_config() -> dict[str, Any]:
    """The config of a real merged Gemma 3n E2B."""
    found: dict[str, Any] = _data()["merged"]["config"]
    return found


def merged_names() -> set[str]:
    """The names in its index."""
    return set(_data()["merged"]["index"]["weight_map"])


def merged_index() -> dict[str, Any]:
    """Its index: ``metadata`` and ``weight_map``."""
    found: dict[str, Any] = _data()["merged"]["index"]
    return found
