"""How tight the proved bounds are: bound / observed peak of every value, by kind of operation, on tiny real models.

Usage: PYTHONPATH=tests python benchmarks/tightness.py [--seeds N]

It needs tests/requirements-proof.txt. The models are transformers' and timm's own with the weights of tests/stress.py,
run in float32 on the CPU, a text and two images. Bounds grow looser with depth and width; these models have 2 to 6
layers of 16 channels, so the table says which kinds of steps lose how much, not how far a real model is from its
bounds.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from checkpoints import tiny_gemma3_config, tiny_gemma3_multimodal_config, tiny_gemma3n_config, tiny_gemma3n_text_config
from stress import RECIPES, stressed
from written import exact_bounds, run

from gemma_doctor.architectures import identify

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "Gemma 3, text": tiny_gemma3_config(),
    "Gemma 3, image and text": tiny_gemma3_multimodal_config(),
    "Gemma 3n, text": tiny_gemma3n_text_config(),
    "Gemma 3n, image encoder": tiny_gemma3n_config(),
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """Bound / observed peak of one value.

    Attributes:
        kind: The kind of operation that writes it.
        bound: The ratio.
        by_peaks: The same where only the largest channel of every gain is known.
    """

    kind: str
    bound: float
    by_peaks: float


def ratios(family: str, recipe: str, seed: int) -> Iterator[Ratio]:
    """How tight each value of one run is bounded, if it is not zero.

    Args:
        family: One of :data:`CONFIGS`.
        recipe: One of the recipes for weights.
        seed: Of the weights.
    """
    config = CONFIGS[family]
    tensors, model = stressed(config, recipe, seed), identify(config)
    peaks, bounds = run(config, tensors, torch.float32), exact_bounds(model, tensors)
    loose = exact_bounds(model, tensors, by_channel=False)
    for value in model.values:
        peak = peaks.get(value.name)
        if peak and value.name in bounds and ("encoder" not in family or "vision" in value.name):
            yield Ratio(value.kind, bounds[value.name] / peak, loose[value.name] / peak)


def main() -> None:
    """Print a table for each family."""
    parser = argparse.ArgumentParser(description="Bound / observed, by kind of operation.")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each recipe for weights")
    seeds = parser.parse_args().seeds
    print("| model | operation | values | least | median | largest | median, by peaks |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for family in CONFIGS:
        found: dict[str, list[Ratio]] = defaultdict(list)
        for recipe in RECIPES:
            for seed in range(seeds):
                for ratio in ratios(family, recipe, seed):
                    found[ratio.kind].append(ratio)
        for kind, items in found.items():
            each = [item.bound for item in items]
            numbers = f"{min(each):.3g} | {median(each):.3g} | {max(each):.3g}"
            by_peaks = median(item.by_peaks for item in items)
            print(f"| {family} | {kind} | {len(items):,} | {numbers} | {by_peaks:.3g} |", flush=True)


if __name__ == "__main__":
    main()
