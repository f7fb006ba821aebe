"""rescale-conv on the real encoder: the same bits once eps follows, and within the stated bound while it does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import PUBLISHED, Array, healthy, in_bfloat16, plant_rows, tiny_gemma3n_config, write
from repairs import carry_out, plan
from tiny_models import ENCODER, encoder, features, load, normalised, watching
from torch import nn

from gemma_doctor.architectures import identify
from gemma_doctor.architectures.base import Conv
from gemma_doctor.checkpoint import FileBytes, open_checkpoint
from gemma_doctor.plans import Plan, Scale
from gemma_doctor.repair.evidence.calibration import Calibration, Measured
from gemma_doctor.repair.fingerprint import fingerprint

CONFIG = {**tiny_gemma3n_config(), "dtype": "float32"}
CONVS = {name: conv for name, conv in identify(CONFIG).convs.items() if name.startswith(ENCODER)}
WINDOW, FLOAT16 = 256.0, 65504.0


@cache
def sound() -> dict[str, Array]:
    return dict(healthy(CONFIG))


def planted() -> dict[str, Array]:
    """The checkpoint with four enormous rows in each of the published convolutions."""
    return plant_rows(sound(), dict.fromkeys(PUBLISHED, 2.0**8))


def scalings(prescription: Plan) -> list[Scale]:
    """The edits of a plan that does nothing else."""
    edits = [edit for edit in prescription.edits if isinstance(edit, Scale)]
    assert len(edits) == len(prescription.edits) > 0
    return edits


def exponents(prescription: Plan) -> dict[str, int]:
    """What each tensor is multiplied by, as powers of two."""
    totals: dict[str, int] = {}
    for edit in scalings(prescription):
        totals[edit.tensor] = totals.get(edit.tensor, 0) + edit.exponent
    return totals


def norm_of(model: nn.Module, conv: Conv) -> Any:  # noqa: ANN401  # a class of timm
    """The module that normalises a convolution's outputs; None where there is none."""
    return model.get_submodule(conv.norm.weight.removesuffix(".weight")) if conv.norm else None


def follow(model: nn.Module, scaled: Mapping[str, int]) -> None:
    """Lets the eps of each norm follow the mean square that it is added to."""
    for name, conv in CONVS.items():
        norm = norm_of(model, conv)
        if norm is not None:
            norm.eps = norm.eps * 4.0 ** scaled.get(name, 0)


def beyond(name: str, conv: Conv) -> Measured:
    """A peak beyond the window; the output projections' further, so that what the values hand them is not enough."""
    limit = WINDOW if conv.norm else FLOAT16
    return Measured(limit * (16 if "output.proj" in name else 4), 1e9)


def test_every_convolution_scaled_is_the_same_function_bit_for_bit(tmp_path: Path) -> None:
    """All 282 at once, with eps scaled to match."""
    sick = write(tmp_path / "sick", sound(), CONFIG)
    modules = {
        name.removesuffix(".weight"): beyond(name, conv) for name, conv in CONVS.items() if "key.proj" not in name
    }
    prescription = plan(sick, "rescale-conv", calibration=Calibration("trace", modules))
    scaled = exponents(prescription)
    assert len(CONVS) == 282
    assert CONVS.keys() <= {name for name, exponent in scaled.items() if exponent}
    mended = carry_out(prescription, sick, tmp_path / "mended")
    for dtype in (torch.float32, torch.float64):
        before, after = load(sick, dtype), load(mended, dtype)
        assert after.complaints == ()
        expected = features(encoder(before.model))
        assert not torch.equal(features(encoder(after.model)), expected)  # eps is felt, so the next line says something
        follow(after.model, scaled)
        assert torch.equal(features(encoder(after.model)), expected)


def trace(folder: Path) -> tuple[Calibration, dict[str, torch.Tensor], torch.Tensor]:
    """What an image makes of the encoder in float64: peaks and squares, each convolution's input, the output."""
    model = load(folder, torch.float64).model
    modules: dict[str, Measured] = {}
    inputs: dict[str, torch.Tensor] = {}

    def see(name: str, given: torch.Tensor, result: torch.Tensor) -> None:
        modules[name] = Measured(float(result.abs().max()), float(result.square().mean(dim=1).min()))
        inputs[f"{name}.weight"] = given

    with watching(
        {name.removesuffix(".weight"): model.get_submodule(name.removesuffix(".weight")) for name in CONVS}, see
    ):
        output = features(encoder(model))
    return Calibration("trace", modules), inputs, output


def changes(
    sick: Path, mended: Path, inputs: Mapping[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """For each convolution of the plan: the mean square at each position, and the largest relative change there.

    Both convolutions get the sick model's input, and timm's norm reads them with the eps that it has.
    """
    models = [load(folder, torch.float64).model for folder in (sick, mended)]
    found = {}
    for name, given in inputs.items():
        results = [model.get_submodule(name.removesuffix(".weight"))(given) for model in models]
        norm = norm_of(models[1], CONVS[name])
        assert norm is not None
        before, after = (normalised(norm, result) for result in results)
        found[name] = (
            results[0].square().mean(dim=1),
            ((after - before).abs() / before.abs()).nan_to_num(0).amax(dim=1),
        )
    return found


def drift(mended: Path, expected: torch.Tensor) -> float:
    """By how much of its length the whole encoder's output changes, at the position where that is most."""
    change = features(encoder(load(mended, torch.float64).model)) - expected
    return float((change.norm(dim=1) / expected.norm(dim=1)).max())


def test_with_timms_eps_nothing_changes_by_more_than_a_calibrated_plan_states(tmp_path: Path) -> None:
    """Each norm by what its edit states, at every position; the encoder by no more than all of them together."""
    sick = write(tmp_path / "sick", planted(), CONFIG)
    calibration, inputs, expected = trace(sick)
    prescription = plan(sick, "rescale-conv", rules=["GD104"], calibration=calibration)
    mended = carry_out(prescription, sick, tmp_path / "mended")
    assert {name for name, power in exponents(prescription).items() if power < 0} == PUBLISHED.keys()
    stated = {
        edit.tensor: float(str(edit.reason.evidence["relative_change"]))
        for edit in scalings(prescription)
        if "relative_change" in edit.reason.evidence  # a bias follows its weight
    }
    assert stated.keys() > PUBLISHED.keys()
    for name, (_, change) in changes(sick, mended, {name: inputs[name] for name in stated}).items():
        assert 0 < float(change.max()) <= stated[name]
    assert 0 < drift(mended, expected) <= sum(stated.values())


def test_without_a_trace_the_stated_change_holds_for_the_mean_square_that_is_stated(tmp_path: Path) -> None:
    """Positions with a smaller one change by more, in proportion; the encoder by less than the pass calls felt."""
    sick = write(tmp_path / "sick", planted(), CONFIG)
    _, inputs, expected = trace(sick)
    prescription = plan(sick, "rescale-conv", rules=["GD104"])
    mended = carry_out(prescription, sick, tmp_path / "mended")
    assert exponents(prescription).keys() == PUBLISHED.keys()
    found = changes(sick, mended, {name: inputs[name] for name in PUBLISHED})
    for edit in scalings(prescription):
        stated, mean = (float(str(edit.reason.evidence[key])) for key in ("relative_change", "mean_square"))
        squares, change = found[edit.tensor]
        assert bool((change > 0).all())
        assert bool((change <= stated * mean / squares * (1 + 1e-6)).all())
    assert 0 < drift(mended, expected) < 2**-9


def test_a_gain_that_is_small_where_the_rows_are_large_is_not_mistaken_for_a_loud_stream(tmp_path: Path) -> None:
    """Enormous rows behind a layer scale that silences just these rows: the stream is not loud, whatever the rows say.

    Scaled as if it were, the encoder would drift by a sixth.
    """
    block = f"{ENCODER}blocks.2.9."
    tensors = plant_rows(sound(), {f"{block}attn.output.proj.weight": 3e5})
    gains = np.array(tensors[f"{block}layer_scale.gamma"])
    gains[:4] = 1e-5
    sick = write(tmp_path / "sick", {**tensors, f"{block}layer_scale.gamma": gains}, CONFIG)
    mended = carry_out(plan(sick, rules=["GD104"]), sick, tmp_path / "mended")
    expected = features(encoder(load(sick).model))
    assert drift(mended, expected) < 2.0**-9


def inverse(done: Plan, folder: Path) -> Plan:
    """The plan that takes every scaling back, for what the first one made."""
    edits = tuple(replace(edit, exponent=-edit.exponent) for edit in reversed(scalings(done)))
    checkpoint = open_checkpoint(folder)
    with FileBytes(checkpoint) as files:
        return replace(done, edits=edits, fingerprint=fingerprint(checkpoint, files, [edit.tensor for edit in edits]))


def test_a_plan_and_its_inverse_restore_every_byte(tmp_path: Path) -> None:
    sick = write(tmp_path / "sick", in_bfloat16(planted()), CONFIG, shards=2)
    there = plan(sick, "rescale-conv", rules=["GD104"])
    mended = carry_out(there, sick, tmp_path / "mended")
    restored = carry_out(inverse(there, mended), mended, tmp_path / "restored")
    shards = sorted(path.name for path in sick.glob("*.safetensors"))
    assert len(shards) == 2
    assert any((mended / name).read_bytes() != (sick / name).read_bytes() for name in shards)
    assert all((restored / name).read_bytes() == (sick / name).read_bytes() for name in shards)
