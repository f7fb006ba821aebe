"""Checkpoints of real size for the GPU benchmarks: random weights, as a sound initialisation would give them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gemma_doctor.architectures import identify
from gemma_doctor.architectures.base import Expected

__all__ = ["build"]

_SHARD = 4 << 30
"""Bytes of a shard, about."""

Tensors = dict[str, torch.Tensor]


def build(
    folder: Path, config: Mapping[str, Any], sicken: Callable[[str, torch.Tensor], torch.Tensor], device: str = "cuda"
) -> Path:
    """Write a checkpoint in bfloat16: shards, index, config.

    Args:
        folder: Where to.
        config: Its ``config.json``; the architecture must be known.
        sicken: What becomes of each tensor (name, float32 values) before it is rounded.
        device: Where the numbers are drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device).manual_seed(0)
    shards = list(_shards(config, sicken, generator))
    weight_map: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _shards(
    config: Mapping[str, Any], sicken: Callable[[str, torch.Tensor], torch.Tensor], generator: torch.Generator
) -> Iterator[Tensors]:
    shard: Tensors = {}
    for name, expected in identify(config).expected.items():
        if expected.need not in {"required", "stem-bias"}:
            continue
        shard[name] = sicken(name, _sound(expected, generator)).to(torch.bfloat16).cpu()
        if sum(tensor.nbytes for tensor in shard.values()) >= _SHARD:
            yield shard
            shard = {}
    if shard:
        yield shard


def _sound(expected: Expected, generator: torch.Generator) -> torch.Tensor:
    """As :func:`gemma_doctor.demo.sound`: rows of unit length, gains near one, layer scales from 1e-5 to 1."""
    shape, device = expected.shape, generator.device
    if expected.need == "stem-bias":
        return torch.zeros(shape, device=device)
    if expected.module == "LayerScale2d":
        return 10 ** torch.empty(shape, device=device).uniform_(-5, 0, generator=generator)
    noise = torch.randn(shape, generator=generator, device=device)
    if expected.role in {"conv", "linear"}:
        return noise / math.sqrt(math.prod(shape[1:]))
    if expected.role in {"norm", "other"}:
        return 0.1 * noise + (0.0 if expected.plus_one else 1.0)
    return 0.02 * noise
