"""What collapses in float16 on the real encoder agrees with float32 after the repair, better than bfloat16 does."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from checkpoints import PUBLISHED, Array, healthy, plant_rows, tiny_gemma3n_config, write
from repairs import carry_out, plan
from tiny_models import ENCODER, encoder, features, load, watching

CONFIG = {**tiny_gemma3n_config(), "dtype": "float32"}
STEM = {f"{ENCODER}conv_stem.conv.weight": 2.0**11}
BLOCK = f"{ENCODER}blocks.2.9."


@dataclass(frozen=True, slots=True)
class Run:
    """The encoder in some dtype.

    Attributes:
        output: What it makes of an image, in float32; shape (1, 2048, 16, 16).
        zeroed: Positions at which a norm made every channel 0.
        infinite: Outputs of convolutions that are not finite.
    """

    output: torch.Tensor
    zeroed: int
    infinite: int


@cache
def sound() -> dict[str, Array]:
    return dict(healthy(CONFIG))


def published() -> dict[str, Array]:
    """Whole rows of the published convolutions."""
    return plant_rows(sound(), dict.fromkeys(PUBLISHED, 2.0**9))


def stem() -> dict[str, Array]:
    """Whole rows of the first convolution: every later layer sees nothing of the image."""
    return plant_rows(sound(), STEM)


def attention() -> dict[str, Array]:
    """Query and value beyond float16's range in one block each, taken back by the key and the layer scale."""
    factors = {
        f"{BLOCK}attn.query.proj.weight": 2.0**17,
        f"{BLOCK}attn.key.proj.weight": 2.0**-17,
        f"{ENCODER}blocks.2.11.attn.value.proj.weight": 2.0**17,
        f"{ENCODER}blocks.2.11.attn.output.proj.weight": 2.0**-17,
        f"{ENCODER}blocks.3.1.attn.output.proj.weight": 2.0**17,
        f"{ENCODER}blocks.3.1.layer_scale.gamma": 2.0**-17,
    }
    return plant_rows(sound(), factors, None)


PLANTINGS = {"published": published, "stem": stem, "attention": attention}


def run(folder: Path, *dtypes: torch.dtype) -> tuple[Run, ...]:
    """The encoder of a folder, in each dtype."""
    loaded = load(folder)
    assert loaded.complaints == ()
    return tuple(_run(deepcopy(encoder(loaded.model)).to(dtype)) for dtype in dtypes)


def _run(tower: torch.nn.Module) -> Run:
    zeroed, infinite = [0], [0]

    def see(_: str, __: torch.Tensor, result: torch.Tensor) -> None:
        zeroed[0] += int((result == 0).all(dim=1).sum())
        infinite[0] += int((~result.isfinite()).sum())

    with watching({name: module for name, module in tower.named_modules() if _is_watched(name, module)}, see):
        output = features(tower)
    return Run(output.float(), zeroed[0], infinite[0])


def _is_watched(name: str, module: torch.nn.Module) -> bool:
    return "Rms" in type(module).__name__ or name.endswith(("conv", "proj"))


def error(run: Run, reference: Run) -> float:
    """The Euclidean distance, as a share of the reference's length; NaN where something is not finite."""
    return float((run.output - reference.output).norm() / reference.output.norm())


@pytest.mark.parametrize("planting", PLANTINGS)
def test_float16_collapses_and_is_mended(tmp_path: Path, planting: str) -> None:
    sick = write(tmp_path / "sick", PLANTINGS[planting](), CONFIG)
    reference, half, brain = run(sick, torch.float32, torch.float16, torch.bfloat16)
    assert (reference.zeroed, reference.infinite) == (0, 0)
    assert half.zeroed or half.infinite
    assert not error(half, reference) <= 2 * error(brain, reference)

    prescription = plan(sick, rules=["GD104"])
    assert {edit.pass_name for edit in prescription.edits} == {"rescale-conv"}
    mended = carry_out(prescription, sick, tmp_path / "mended")
    assert plan(mended, rules=["GD104"]).edits == ()
    single, after = run(mended, torch.float32, torch.float16)
    assert (after.zeroed, after.infinite) == (0, 0)
    assert error(after, reference) <= error(brain, reference)
    assert error(single, reference) < 1e-4
