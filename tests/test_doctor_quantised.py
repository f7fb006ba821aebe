"""Quantised checkpoints as their quantisers write them, from scan to repair, on the command line.

Names, shapes and dtypes are those of AutoAWQ's GEMM layout, GPTQ, bitsandbytes 0.50 (``QuantState.as_dict``,
``Linear8bitLt._save_to_state_dict``), compressed-tensors 0.20 (``compression_param_names``) and transformers 5.23
(``FP8Linear``). A linear layer has ``outputs`` rows and ``inputs`` columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from checkpoints import Array, Raw, bfloat16, healthy, in_bfloat16, tiny_gemma3_config, write
from command import call
from safetensors import deserialize

from gemma_doctor.architectures import identify

Tensors: TypeAlias = dict[str, "Array | Raw"]
Quantiser: TypeAlias = Callable[[str, int, int], Tensors]

RNG = np.random.default_rng(0)
GROUP = 32
CONFIG = {
    **tiny_gemma3_config(),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
NF4 = np.linspace(-1, 1, 16, dtype=np.float32)


def bits(dtype: type[np.integer], *shape: int) -> Array:
    """Any integer at all, as packed weights are."""
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def scales(*shape: int, scale: float = 0.02) -> Array:
    return (scale * (1 + RNG.random(shape))).astype(np.float32)


def float8(dtype: str, outputs: int, inputs: int) -> Raw:
    """Float8 weights that fill their range, as scales make them: up to 448 (E4M3) or 57344 (E5M2)."""
    largest = {"F8_E4M3": 0x7E, "F8_E5M2": 0x7B}[dtype]
    values = RNG.integers(0, largest, (outputs, inputs), np.uint8, endpoint=True)
    values[0, 0] = largest
    return Raw(dtype, (outputs, inputs), values.tobytes())


def awq(prefix: str, outputs: int, inputs: int) -> Tensors:
    return {
        f"{prefix}.qweight": bits(np.int32, inputs, outputs // 8),
        f"{prefix}.qzeros": bits(np.int32, inputs // GROUP, outputs // 8),
        f"{prefix}.scales": scales(inputs // GROUP, outputs).astype(np.float16),
    }


def gptq(prefix: str, outputs: int, inputs: int) -> Tensors:
    return {
        f"{prefix}.qweight": bits(np.int32, inputs // 8, outputs),
        f"{prefix}.qzeros": np.zeros((inputs // GROUP, outputs // 8), np.int32),
        f"{prefix}.scales": scales(inputs // GROUP, outputs).astype(np.float16),
        f"{prefix}.g_idx": (np.arange(inputs) // GROUP).astype(np.int32),
    }


def bitsandbytes_nf4(prefix: str, outputs: int, inputs: int) -> Tensors:
    """With double quantisation: the blocks' maxima are quantised themselves."""
    weight, blocks = f"{prefix}.weight", outputs * inputs // 64
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [outputs, inputs]}
    return {
        weight: bits(np.uint8, outputs * inputs // 2, 1),
        f"{weight}.absmax": bits(np.uint8, blocks),
        f"{weight}.quant_map": NF4,
        f"{weight}.nested_absmax": scales(-(-blocks // 256)),
        f"{weight}.nested_quant_map": np.linspace(-1, 1, 256, dtype=np.float32),
        f"{weight}.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }


def bitsandbytes_int8(prefix: str, outputs: int, inputs: int) -> Tensors:
    return {
        f"{prefix}.weight": bits(np.int8, outputs, inputs),
        f"{prefix}.SCB": scales(outputs, scale=2),
        f"{prefix}.weight_format": np.array(0, np.uint8),
    }


def compressed_int4(prefix: str, outputs: int, inputs: int) -> Tensors:
    return {
        f"{prefix}.weight_packed": bits(np.int32, outputs, inputs // 8),
        f"{prefix}.weight_scale": bfloat16(scales(outputs, inputs // GROUP)),
        f"{prefix}.weight_shape": np.array([outputs, inputs]),
    }


def compressed_float8(prefix: str, outputs: int, inputs: int) -> Tensors:
    return {
        f"{prefix}.weight": float8("F8_E4M3", outputs, inputs),
        f"{prefix}.weight_scale": bfloat16(scales(outputs, 1, scale=1e-4)),
        f"{prefix}.input_scale": bfloat16([0.02]),
    }


def compressed_nvfp4(prefix: str, outputs: int, inputs: int) -> Tensors:
    """Its scales of scales are 448 * 6 / max|w|, and stay in float32: beyond 65504 for a small weight."""
    return {
        f"{prefix}.weight_packed": bits(np.uint8, outputs, inputs // 2),
        f"{prefix}.weight_scale": float8("F8_E4M3", outputs, inputs // 16),
        f"{prefix}.weight_global_scale": np.array([448 * 6 / 0.03], np.float32),
        f"{prefix}.input_global_scale": np.array([40_000.0], np.float32),
    }


def float8_by_block(prefix: str, outputs: int, inputs: int) -> Tensors:
    return {
        f"{prefix}.weight": float8("F8_E4M3", outputs, inputs),
        f"{prefix}.weight_scale_inv": scales(-(-outputs // 128), -(-inputs // 128), scale=1e-4),
    }


def float8_e5m2(prefix: str, outputs: int, inputs: int) -> Tensors:
    return {f"{prefix}.weight": float8("F8_E5M2", outputs, inputs), f"{prefix}.weight_scale": scales(1, scale=1e-6)}


QUANTISERS: Mapping[Quantiser, Mapping[str, Any]] = {
    awq: {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    gptq: {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    bitsandbytes_nf4: {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    bitsandbytes_int8: {"quant_method": "bitsandbytes", "load_in_8bit": True},
    compressed_int4: {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    compressed_float8: {"quant_method": "compressed-tensors", "format": "float-quantized"},
    compressed_nvfp4: {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
    float8_by_block: {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    float8_e5m2: {"quant_method": "fp8", "activation_scheme": "dynamic"},
}
each_quantiser = pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda quantiser: quantiser.__name__)


def quantised(quantiser: Quantiser) -> Tensors:
    """A Gemma 3 whose linear layers are quantised, and whose embedding and norms are not."""
    linears = {name: item for name, item in identify(CONFIG).expected.items() if item.role == "linear"}
    tensors = {name: tensor for name, tensor in in_bfloat16(healthy(CONFIG)).items() if name not in linears}
    for name, item in linears.items():
        if item.need == "required":
            tensors |= quantiser(name.removesuffix(".weight"), *item.shape)
    return tensors


def stored(file: Path) -> dict[str, Any]:
    """Every tensor's dtype, shape and bytes, as the official parser reads them."""
    return dict(deserialize(file.read_bytes()))  # type: ignore[no-untyped-call]


def scanned(folder: Path, *options: str) -> dict[str, Any]:
    done = call("scan", folder, "--json", "-", *options)
    assert done.code in (0, 1), done.err
    report: dict[str, Any] = json.loads(done.out)
    assert report["complete"]
    return report


def openings(report: Mapping[str, Any]) -> list[str]:
    """How its remarks begin."""
    return [" ".join(remark.split()[:4]) for remark in report["remarks"]]


QUANTISED, NO_CONFIG = "the weights are quantised:", "there is no config.json,"


@each_quantiser
def test_what_a_quantiser_writes_is_measured_and_gives_no_nonsense(quantiser: Quantiser, tmp_path: Path) -> None:
    tensors = quantised(quantiser)
    config = {**CONFIG, "quantization_config": dict(QUANTISERS[quantiser])}
    report = scanned(write(tmp_path, tensors, config))
    assert report["findings"] == []
    assert openings(report) == [QUANTISED]
    measured = {tensor["name"]: tensor for tensor in report["tensors"]}
    assert measured.keys() == tensors.keys()
    roles = {tensor["role"] for name, tensor in measured.items() if "_proj." in name}
    assert roles == {"other"}  # so no budget of inputs is reckoned from what is no weight
    for name in (name for name in tensors if name.rpartition(".")[2] in {"scales", "weight_scale", "SCB"}):
        assert measured[name]["absmax"] > 0
        assert measured[name]["input_budget"] is None


@each_quantiser
@pytest.mark.parametrize("config", [None, CONFIG], ids=["no config", "a config that knows nothing of it"])
def test_names_tell_what_the_config_does_not(quantiser: Quantiser, config: Any, tmp_path: Path) -> None:  # noqa: ANN401
    report = scanned(write(tmp_path, quantised(quantiser), config))
    assert report["findings"] == []
    assert openings(report) == [QUANTISED, NO_CONFIG][: 2 if config is None else 1]


def test_scales_that_become_float16_are_judged(tmp_path: Path) -> None:
    tensors = quantised(compressed_int4)
    name = "model.layers.1.mlp.up_proj.weight_scale"
    tensors[name] = bfloat16(np.full((128, 2), 1e5))
    config = {**CONFIG, "quantization_config": dict(QUANTISERS[compressed_int4])}
    (finding,) = scanned(write(tmp_path, tensors, config))["findings"]
    assert (finding["rule"], finding["tensor"]) == ("GD102", name)


@each_quantiser
def test_a_repair_leaves_everything_packed_as_it_is(quantiser: Quantiser, tmp_path: Path) -> None:
    tensors = quantised(quantiser)
    sick = next(name for name in tensors if name.endswith("input_layernorm.weight"))
    tensors[sick] = bfloat16(np.full(64, np.nan))
    config = {**CONFIG, "quantization_config": dict(QUANTISERS[quantiser])}
    folder, mended = write(tmp_path / "sick", tensors, config), tmp_path / "mended"
    assert [finding["rule"] for finding in scanned(folder)["findings"]] == ["GD101"]
    done = call("repair", folder, "--output", mended, "--unsafe")
    assert done.code in (0, 1), done.err
    before, after = (stored(path / "model.safetensors") for path in (folder, mended))
    assert before.keys() == after.keys() == tensors.keys()
    assert [name for name in tensors if before[name] != after[name]] == [sick]
