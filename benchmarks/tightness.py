"""How tight the proved bounds are: bound / observed peak of every value, by kind of operation, on tiny real models.

Usage: PYTHONPATH=tests python benchmarks/tightness.py [--seeds N]

It needs tests/requirements-proof.txt. The models are transformers' and timm's own with the weights of tests/stress.py,
run once in float32 on the CPU. Bounds grow looser with depth and width; these models have 2 to 6 layers of 16
channels, so the table says which kinds of steps lose how much, not how far a real model is from its bounds.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

import torch
from checkpoints import tiny_gemma3_config, tiny_gemma3_multimodal_config, tiny_gemma3n_config, tiny_gemma3n_text_config
from stress import RECIPES, stressed
from written import exact_bounds, run

from gemma_doctor.architectures import identify

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gemma3": tiny_gemma3_config(),
    "gemma3-multimodal": tiny_gemma3_multimodal_config(),
    "gemma3n-text": tiny_gemma3n_text_config(),
    "gemma3n": tiny_gemma3n_config(),
}


def looseness(family: str, recipe: str, seed: int) -> Iterator[tuple[str, float]]:
    """Kind of operation and bound / observed, for each value of one run that is not zero.

    Args:
        family: One of :data:`CONFIGS`.
        recipe: One of the recipes for weights.
        seed: Of the weights.
    """
    config = CONFIGS[family]
    tensors, model = stressed(config, recipe, seed), identify(config)
    peaks, bounds = run(config, tensors, torch.float32), exact_bounds(model, tensors)
    for value in model.values:
        if peaks.get(value.name) and value.name in bounds:
            yield value.kind, bounds[value.name] / peaks[value.name]


def main() -> None:
    """Print a table for each family."""
    parser = argparse.ArgumentParser(description="Bound / observed, by kind of operation.")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each recipe for weights")
    seeds = parser.parse_args().seeds
    print("| model | operation | values | least | median | largest |")
    print("| --- | --- | --- | --- | --- | --- |")
    for family in CONFIGS:
        found: dict[str, list[float]] = defaultdict(list)
        for recipe in RECIPES:
            for seed in range(seeds):
                for kind, ratio in looseness(family, recipe, seed):
                    found[kind].append(ratio)
        for kind, ratios in found.items():
            numbers = f"{min(ratios):.3g} | {median(ratios):.3g} | {max(ratios):.3g}"
            print(f"| {family} | {kind} | {len(ratios):,} | {numbers} |")


if __name__ == "__main__":
    main()
