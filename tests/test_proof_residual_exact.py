"""Where eps would be felt it shrinks as well, and real models give the same bits; what is certified stays finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Array, tiny_gemma2_config, tiny_gemma3_config, tiny_gemma3_multimodal_config, write
from repairs import carry_out, plan
from stress import stressed
from test_proof_residual import error, in_bits, logits, loud_gains
from tiny_models import answers, load
from written import written

import gemma_doctor
from gemma_doctor.plans import Plan, SetConfig

PASS = "rescale-residual"
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gemma2": tiny_gemma2_config(),
    "gemma3": tiny_gemma3_config(),
    "gemma3, biases": {**tiny_gemma3_config(), "attention_bias": True},
    "gemma3, head of its own": {**tiny_gemma3_config(), "tie_word_embeddings": False},
    "gemma3-multimodal": tiny_gemma3_multimodal_config(),
}


def quiet_words(config: Mapping[str, Any]) -> dict[str, Array]:
    """Loud layers behind words so quiet that 4^k times the eps would drown them."""
    tensors = loud_gains(config)
    for name in tensors:
        if "embed_tokens" in name:
            tensors[name] = in_bits(tensors[name] * np.float32(2.0**-12))
    return tensors


def prescribe(folder: Path) -> Plan:
    return plan(folder, PASS, rules=["GD301"])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_output_keeps_its_bits_where_the_eps_shrinks_with_the_stream(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    before = write(tmp_path / "sick", quiet_words(config), {**config, "dtype": "float32"})
    prescription = prescribe(before)
    (eps,) = (edit for edit in prescription.edits if isinstance(edit, SetConfig))
    assert eps.path[-1] == "rms_norm_eps"
    assert {edit.exactness for edit in prescription.edits} == {"exact"}
    assert prescription.edits[0].reason.evidence["certified"] is True
    after = carry_out(prescription, before, tmp_path / "mended")
    for dtype in (torch.float32, torch.float64):
        expected, seen = (answers(load(folder, dtype).model)["logits"] for folder in (before, after))
        assert torch.equal(seen, expected)
    reference = logits(before, torch.float64)
    assert not bool(logits(before, torch.float16).isfinite().all())
    assert error(logits(after, torch.float16), reference) < error(logits(before, torch.bfloat16), reference)


def test_the_weights_alone_would_not_do(tmp_path: Path) -> None:
    """The same plan without its change of the config is another function: that is what the edit is for."""
    config = CONFIGS["gemma3"]
    before = write(tmp_path / "sick", quiet_words(config), {**config, "dtype": "float32"})
    after = carry_out(prescribe(before), before, tmp_path / "mended")
    text = (after / "config.json").read_text()
    assert "rms_norm_eps" in text
    (after / "config.json").write_text((before / "config.json").read_text())
    reference = logits(before, torch.float64)
    assert error(logits(after, torch.float64), reference) > 2.0**-9


def loud(config: Mapping[str, Any], recipe: str, seed: int) -> dict[str, Array]:
    """Straining weights, behind norms that write far more than float16 holds."""
    tensors: dict[str, Array] = stressed(config, recipe, seed)
    ends = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
    return {
        name: array * np.float32(2.0**13 / np.abs(array).max()) if name.endswith(ends) else array
        for name, array in tensors.items()
    }


def peaks(folder: Path) -> dict[str, float]:
    """What a float16 run writes anywhere: all words in two orders, and images of every extreme."""
    model = load(folder, torch.float16).model
    vision = getattr(model.config, "vision_config", None)

    def ask(model: Any) -> None:  # noqa: ANN401  # a class of transformers
        words = torch.arange(3, 60)
        for row in (words, words.flip(0), torch.full((9,), 5)):
            model(row[None])
        if vision is None:
            return
        side, image = vision.image_size, torch.full((model.config.mm_tokens_per_image,), model.config.image_token_id)
        board = (torch.arange(side)[:, None] + torch.arange(side)) % 2 * 2.0 - 1
        for pixels in (torch.ones(side, side), -torch.ones(side, side), torch.zeros(side, side), board):
            model(torch.cat([words, image])[None], pixel_values=pixels.expand(1, 3, side, side).half())

    return written(model, ask)


@pytest.mark.parametrize("recipe", ["random", "aligned", "narrow"])  # the others ask for more than eps allows
@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gemma3-multimodal"])
def test_what_is_certified_overflows_nowhere(tmp_path: Path, name: str, recipe: str) -> None:
    """Before, the recipe's model overflows or at least is not proved; after, nothing that it writes is infinite."""
    config = CONFIGS[name]
    before = write(tmp_path / "sick", loud(config, recipe, 3), {**config, "dtype": "float32"})
    proof = gemma_doctor.scan(before).proof
    assert proof is not None
    assert not proof.certified
    prescription = plan(before, PASS)
    after = carry_out(prescription, before, tmp_path / "mended")
    proof = gemma_doctor.scan(after).proof
    assert proof is not None
    assert proof.certified
    assert prescription.edits[0].reason.evidence["certified"] is True
    seen = peaks(after)
    assert len(seen) > 30
    assert {name for name, peak in seen.items() if not math.isfinite(peak)} == set()
