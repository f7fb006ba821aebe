"""``gemma_doctor.scan`` on quantised checkpoints: every tensor is measured, and scales are not taken for weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import Array, Raw, bfloat16, tiny_gemma3_config, write

import gemma_doctor

Quantiser = Callable[[str], dict[str, Array | Raw]]

RNG = np.random.default_rng(0)
ROWS, COLUMNS = 16, 32


def floats(*shape: int, scale: float = 0.02) -> Array:
    return (scale * (1 + RNG.random(shape))).astype(np.float32)


def integers(dtype: type[np.integer], *shape: int) -> Array:
    return RNG.integers(0, 100, shape).astype(dtype)


def bitsandbytes(prefix: str) -> dict[str, Array | Raw]:
    weight = f"{prefix}.weight"
    return {
        weight: integers(np.uint8, ROWS * COLUMNS // 2, 1),
        f"{weight}.absmax": integers(np.uint8, 8),
        f"{weight}.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        f"{weight}.nested_absmax": floats(1),
        f"{weight}.nested_quant_map": np.linspace(-1, 1, 256, dtype=np.float32),
        f"{weight}.quant_state.bitsandbytes__nf4": integers(np.uint8, 99),
    }


def gptq(prefix: str) -> dict[str, Array | Raw]:
    """AWQ's names are the same but for ``g_idx``."""
    return {
        f"{prefix}.qweight": integers(np.int32, COLUMNS // 8, ROWS),
        f"{prefix}.qzeros": np.zeros((2, ROWS // 8), np.int32),
        f"{prefix}.scales": floats(2, ROWS).astype(np.float16),
        f"{prefix}.g_idx": np.arange(COLUMNS, dtype=np.int32),
    }


def compressed_tensors(prefix: str) -> dict[str, Array | Raw]:
    return {
        f"{prefix}.weight_packed": integers(np.int32, ROWS, COLUMNS // 8),
        f"{prefix}.weight_scale": floats(ROWS, 2),
        f"{prefix}.weight_shape": np.array([ROWS, COLUMNS]),
    }


def float8(prefix: str) -> dict[str, Array | Raw]:
    return {
        f"{prefix}.weight": Raw("F8_E4M3", (ROWS, COLUMNS), bytes(RNG.integers(0, 100, ROWS * COLUMNS, np.uint8))),
        f"{prefix}.weight_scale_inv": floats(1, 1, scale=3e-4),
    }


@pytest.mark.parametrize("quantised", [bitsandbytes, gptq, compressed_tensors, float8])
def test_what_a_quantiser_writes_is_measured_and_gives_no_nonsense(quantised: Quantiser, tmp_path: Path) -> None:
    tensors: dict[str, Array | Raw] = {"model.embed_tokens.weight": bfloat16(floats(64, COLUMNS))}
    for layer in range(10):
        for part in ("q_proj", "k_proj", "v_proj"):
            tensors |= quantised(f"model.layers.{layer}.self_attn.{part}")
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = bfloat16(floats(COLUMNS))
    config = {**tiny_gemma3_config(), "dtype": "bfloat16", "quantization_config": {"quant_method": "any"}}
    scanned = gemma_doctor.scan(write(tmp_path, tensors, config))
    assert scanned.complete
    assert len(scanned.tensors) == len(tensors)
    nonsense = {"GD106", "GD108", "GD203", "GD204", "GD205", "GD206", "GD207"}
    assert [finding for finding in scanned.findings if finding.rule in nonsense] == []
    roles = {tensor.info.name.rpartition("_proj.")[2]: tensor.role for tensor in scanned.tensors}
    assert "linear" not in roles.values()  # so no budget of inputs is reckoned from what is no weight
    assert [remark.partition(":")[0] for remark in scanned.remarks] == ["the weights are quantised"]
    scales = [tensor for tensor in scanned.tensors if "scale" in tensor.info.name or "absmax" in tensor.info.name]
    assert scales
    assert all(tensor.stats.absmax for tensor in scales)
