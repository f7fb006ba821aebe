"""How much of Gemma 3 at its real sizes is proved to fit float16, before and after rescale-residual, on a CPU.

Usage: PYTHONPATH=tests python benchmarks/certificates.py gemma-3-1b gemma-3-4b

It needs torch. No checkpoint is written: the figures of random weights (rows of unit length, gains near one, as
benchmarks/gpu_models.py draws them) are measured block by block, about two minutes and less than 1 GB of memory for
Gemma 3 4B. Then the gains of the norms that write the residual stream are varied, which is what its bound depends on:
near one; log-normal around 30; the same around 10 with one channel of 2,000, the same one in every layer; and 3,000 in
every channel, as benchmarks/gpu_loop.py plants them. Losses of bits where weights are stored are not counted.
"""

from __future__ import annotations

import argparse
import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import architecture_data
import numpy as np
import numpy.typing as npt
import torch
from examinations import find
from plans import answers

from gemma_doctor.architectures import identify
from gemma_doctor.architectures.base import Expected, Model
from gemma_doctor.checkpoint import Checkpoint
from gemma_doctor.examination import Examination
from gemma_doctor.repair.evidence.case import Mend
from gemma_doctor.tensors import MeasuredTensor, TensorInfo, TensorStats

BLOCK = 1 << 24
WRITERS = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")

Gains = npt.NDArray[np.float64]
Tensors = Mapping[str, MeasuredTensor]


def _spiked(rng: np.random.Generator, channels: int) -> Gains:
    gains: Gains = 10 * np.exp(rng.normal(size=channels))
    gains[channels // 3] = 2000
    return gains


GAINS: Mapping[str, Callable[[np.random.Generator, int], Gains]] = {
    "near one": lambda rng, channels: 1 + 0.1 * rng.normal(size=channels),
    "log-normal, 30": lambda rng, channels: 30 * np.exp(rng.normal(size=channels)),
    "one channel of 2,000": _spiked,
    "3,000 everywhere": lambda rng, channels: 3000 + rng.normal(size=channels),
}


def figures(expected: Expected, generator: torch.Generator) -> tuple[TensorStats, array[float] | None]:
    """What a scan would measure of random bfloat16 weights, and a vector's elements.

    Args:
        expected: The tensor.
        generator: Of the random numbers.
    """
    rows, *others = expected.shape
    width = math.prod(others)
    inputs = rows if expected.rows == "inputs" else width
    vector, matrix = not others, expected.role in {"conv", "linear"}
    spread = 1 / math.sqrt(inputs) if matrix else 0.02 if expected.role == "embedding" else 0.1
    total = TensorStats(
        squares=Fraction(0), row_l1_max=None if vector else 0.0, row_squares_max=None if vector else 0.0
    )
    elements: array[float] | None = None
    for first in range(0, rows, max(1, BLOCK // width)):
        shape = (min(rows - first, max(1, BLOCK // width)), width)
        block = (torch.randn(shape, generator=generator) * spread).bfloat16().float()
        squares = block.square().sum(1, dtype=torch.float64)
        total = TensorStats(
            count=total.count + block.numel(),
            minimum=min(float(block.min()), math.inf if total.minimum is None else total.minimum),
            maximum=max(float(block.max()), -math.inf if total.maximum is None else total.maximum),
            squares=(total.squares or Fraction(0)) + Fraction(float(squares.sum())),
            row_l1_max=None if vector else max(total.row_l1_max or 0.0, float(block.abs().sum(1).max())),
            row_squares_max=None if vector else max(total.row_squares_max or 0.0, float(squares.max())),
        )
        elements = array("d", block.double().flatten().tolist()) if vector else None
    return total, elements


def measured(model: Model) -> dict[str, MeasuredTensor]:
    """Every tensor that the model needs, of random weights."""
    generator, found = torch.Generator().manual_seed(0), dict[str, MeasuredTensor]()
    for name, expected in model.expected.items():
        if expected.need == "required":
            stats, elements = figures(expected, generator)
            info = TensorInfo(name, "BF16", expected.shape, "", 0, 2 * stats.count)
            found[name] = MeasuredTensor(info, stats, expected.role, elements=elements)
    return found


def louder(tensors: Tensors, kind: str) -> dict[str, MeasuredTensor]:
    """The same with other gains of the norms that write the text model's stream."""
    rng, found = np.random.default_rng(0), dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(WRITERS):
            stored = GAINS[kind](rng, tensor.stats.count) - 1
            squares = Fraction(float(np.square(stored).sum()))
            stats = replace(tensor.stats, minimum=float(stored.min()), maximum=float(stored.max()), squares=squares)
            found[name] = replace(tensor, stats=stats, elements=array("d", stored.tobytes()))
    return found


def examined(config: Mapping[str, Any], model: Model, tensors: Tensors) -> Examination:
    """The checkpoint as rules see it."""
    infos = {name: tensor.info for name, tensor in tensors.items()}
    return Examination(
        checkpoint=Checkpoint(".", Path(), "safetensors", (), infos, config=config),
        tensors=tensors,
        model=model,
        layout=None,
        on_disk={name: name for name in infos},
        selected=True,
        target_dtype="float16",
        loader="transformers",
    )


def row(name: str, kind: str, exam: Examination) -> str:
    """One line of the table."""
    before = exam.ranges.written
    mends = [one for one in answers("rescale-residual", exam, find("GD301", exam)) if isinstance(one, Mend)]
    said = mends[0].edits[0].reason.evidence if mends else {}
    bits = max((item.bits_beyond or 0.0 for item in before if item.value.stream == "the residual stream"), default=0.0)
    eps = "shrinks" if "eps_after" in said else "stays"
    safe, proved = sum(item.safe for item in before), said.get("proved_safe", "")
    edits = sum(len(mend.edits) for mend in mends)
    beyond = f"{max(bits, 0.0):.1f}"
    return f"| {name} | {kind} | {safe} of {len(before)} | {beyond} | {edits} | {eps} | {proved} of {len(before)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What is proved before and after rescale-residual.")
    parser.add_argument("models", nargs="+", choices=[one for one in architecture_data.MODELS if "3n" not in one])
    torch.set_grad_enabled(False)
    print("| model | gains behind the layers | proved before | bits beyond | edits | the norms' eps | proved after |")
    print("| --- | --- | ---: | ---: | ---: | --- | ---: |")
    for name in parser.parse_args().models:
        config = architecture_data.config(name)
        model = identify(config)
        tensors = measured(model)
        for kind in GAINS:
            print(row(name, kind, examined(config, model, louder(tensors, kind))), flush=True)


if __name__ == "__main__":
    main()
