"""No value that a real model writes exceeds its bound: whatever the weights, in float32, and in float16 with its slack.

The models are transformers' and timm's own; every declared value is looked for in what they write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from itertools import takewhile
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import (
    tiny_gemma2_config,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    tiny_gemma3n_text_config,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from networks import stats_of
from stress import RECIPES, stressed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from written import exact_bounds, run

from gemma_doctor.architectures import Model, identify
from gemma_doctor.architectures.ranges import analyse
from gemma_doctor.tensors import MeasuredTensor, TensorInfo

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gemma2": tiny_gemma2_config(),
    "gemma2, biases and soft caps": {
        **tiny_gemma2_config(),
        "attention_bias": True,
        "attn_logit_softcapping": 0.25,
        "final_logit_softcapping": 0.5,
        "query_pre_attn_scalar": 1,
    },
    "gemma3": tiny_gemma3_config(),
    "gemma3, biases, soft caps and a head of its own": {
        **tiny_gemma3_config(),
        "tie_word_embeddings": False,
        "attention_bias": True,
        "final_logit_softcapping": 0.5,
        "query_pre_attn_scalar": 1,
    },
    "gemma3-multimodal": tiny_gemma3_multimodal_config(),
    "gemma3n-text": {**tiny_gemma3n_text_config(), "activation_sparsity_pattern": [0.95, 0.5, 0.2, 0.0, 0.0, 0.0]},
    "gemma3n-text, one layer": {
        **tiny_gemma3n_text_config(),
        "num_hidden_layers": 1,
        "num_kv_shared_layers": 0,
        "layer_types": ["full_attention"],
        "activation_sparsity_pattern": [0.5],
        "tie_word_embeddings": False,
    },
}
WIDER = {
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
}
MIDDLE: Mapping[str, Mapping[str, Any]] = {
    "gemma2": {**tiny_gemma2_config(), **WIDER, "num_hidden_layers": 8},
    "gemma3": {**tiny_gemma3_config(), **WIDER, "num_hidden_layers": 8},
    "gemma3-multimodal": {
        **tiny_gemma3_multimodal_config(),
        "text_config": {**tiny_gemma3_multimodal_config()["text_config"], **WIDER, "num_hidden_layers": 4},
        "vision_config": {
            **tiny_gemma3_multimodal_config()["vision_config"],
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
        },
    },
    "gemma3n-text": {**tiny_gemma3n_text_config(), **WIDER, "laurel_rank": 16, "hidden_size_per_layer_input": 24},
    "gemma3n, image encoder": {
        **tiny_gemma3n_config(),
        "vision_config": {**tiny_gemma3n_config()["vision_config"], "model_args": {"channel_multiplier": 0.125}},
    },
}
"""Ten times as wide, and deeper; the image encoder twice as wide."""
ALL = {**CONFIGS, "gemma3n, image encoder and sound": tiny_gemma3n_config()}
ALIASES = {f"{model} (first stream, squared)" for model in ("model", "model.language_model")}
"""The output of the last layer once more, with another limit."""
NOT_ANALYSED = {"model.audio_tower"}
BEHIND_ALTUP = "altup_unembed_projections"
"""AltUp multiplies the bound in every layer; a model of one layer comes near it, deeper ones do not."""
ROUNDING = 1 + 1e-4  # of a float32 run

STEADY = settings(
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a model's weights shrink to nothing simpler
)
FLOAT16_MODELS = ("gemma2", "gemma3", "gemma3-multimodal", "gemma3n-text")


def float16_bounds(model: Model, tensors: Mapping[str, Any]) -> dict[str, float]:
    """What is proved of a run in float16, by name."""
    measured = {
        name: MeasuredTensor(
            TensorInfo(name, "F32", array.shape, "", 0, array.nbytes), stats_of(np.asarray(array, np.float64)), "other"
        )
        for name, array in tensors.items()
    }
    return {item.value.name: item.bound for item in analyse(model, measured).values if item.bound is not None}


def beyond(peaks: Mapping[str, float], bounds: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """The values that exceed their bound."""
    return {name: (peaks[name], bound) for name, bound in bounds.items() if name in peaks and not peaks[name] <= bound}


@cache
def observed(family: str, recipe: str) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """What a float32 run writes, and the bounds in exact arithmetic."""
    config = ALL[family]
    tensors = stressed(config, recipe, 0)
    return run(config, tensors, torch.float32), exact_bounds(identify(config), tensors)


@pytest.mark.parametrize("family", ALL)
def test_every_declared_value_is_written_by_the_real_model_and_bounded(family: str) -> None:
    peaks, bounds = observed(family, "random")
    declared = {value.name for value in identify(ALL[family]).values}
    assert declared - peaks.keys() <= ALIASES | NOT_ANALYSED
    assert declared - bounds.keys() == declared & NOT_ANALYSED


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", ALL)
def test_no_value_exceeds_its_bound_by_any_recipe(family: str, recipe: str) -> None:
    """Every recipe for every family: each was seen to catch a broken bound that the others let pass."""
    peaks, bounds = observed(family, recipe)
    assert beyond(peaks, {name: bound * ROUNDING for name, bound in bounds.items()}) == {}


@pytest.mark.parametrize("recipe", ["random", "outliers", "pointed"])
@pytest.mark.parametrize("family", MIDDLE)
def test_no_value_of_a_model_of_middle_size_exceeds_its_bound(family: str, recipe: str) -> None:
    config = MIDDLE[family]
    tensors = stressed(config, recipe, 7)
    bounds = exact_bounds(identify(config), tensors)
    peaks = run(config, tensors, torch.float32)
    assert bounds.keys() - peaks.keys() <= ALIASES
    assert beyond(peaks, {name: bound * ROUNDING for name, bound in bounds.items()}) == {}


@pytest.mark.parametrize("family", ALL)
def test_every_bound_is_nearly_reached_by_some_recipe(family: str) -> None:
    """A bound that nothing comes near would let a wrong one pass; of layers that are alike the best one counts."""
    slack: dict[str, float] = {}
    for recipe in RECIPES:
        peaks, bounds = observed(family, recipe)
        for name, bound in bounds.items():
            kind = re.sub(r"\d+", "N", name)
            if peaks.get(name):
                slack[kind] = min(slack.get(kind, math.inf), bound / peaks[name])
    most = 2.1 if "gemma3n" in family else 1.2
    deep = family.startswith("gemma3n") and "one layer" not in family
    loose = {kind: ratio for kind, ratio in slack.items() if ratio > most and not (deep and BEHIND_ALTUP in kind)}
    assert loose == {}
    folded = {re.sub(r"\d+", "N", value.name) for value in identify(ALL[family]).values}
    assert folded - slack.keys() <= ALIASES | NOT_ANALYSED


@settings(STEADY, max_examples=40)
@given(st.sampled_from(sorted(CONFIGS)), st.sampled_from(sorted(RECIPES)), st.integers(0, 2**16))
def test_no_value_of_a_float32_run_exceeds_its_bound(family: str, recipe: str, seed: int) -> None:
    config = CONFIGS[family]
    tensors = stressed(config, recipe, seed)
    bounds = exact_bounds(identify(config), tensors)
    peaks = run(config, tensors, torch.float32)
    assert beyond(peaks, {name: bound * ROUNDING for name, bound in bounds.items()}) == {}


def beyond_in_float16(family: str, recipe: str, seed: int) -> dict[str, tuple[float, float]]:
    """The values of a float16 run that exceed their bound, up to the first that is not proved to fit."""
    config = CONFIGS[family]
    tensors = stressed(config, recipe, seed)
    model = identify(config)
    peaks, bounds = run(config, tensors, torch.float16), float16_bounds(model, tensors)
    proved = takewhile(lambda value: bounds[value.name] < value.limit, model.values)
    return beyond(peaks, {value.name: bounds[value.name] for value in proved})


@settings(STEADY, max_examples=16)
@given(st.sampled_from(FLOAT16_MODELS), st.sampled_from(sorted(RECIPES)), st.integers(0, 2**16))
def test_no_value_of_a_float16_run_exceeds_its_bound_before_the_first_overflow(
    family: str, recipe: str, seed: int
) -> None:
    """What is proved safe is finite and within its bound, as long as all before it is."""
    assert beyond_in_float16(family, recipe, seed) == {}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FLOAT16_MODELS)
def test_bounds_that_are_reached_leave_room_for_what_float16_rounds_up(family: str, seed: int) -> None:
    assert beyond_in_float16(family, "pointed", seed) == {}


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("masked", [False, True])
def test_scores_beyond_float16_do_no_harm_where_attention_is_not_eager(backend: SDPBackend, *, masked: bool) -> None:
    """What the certificate assumes: products of 160,000 in float16 heads, by torch's kernel and by its fallback."""
    rng = torch.Generator().manual_seed(0)
    query = 50.0 * torch.randint(0, 2, (1, 2, 8, 64), generator=rng).half()
    value = torch.randn((1, 2, 8, 64), generator=rng).half()
    mask = torch.ones(8, 8, dtype=torch.bool).tril() if masked else None
    assert not (query @ query.transpose(-1, -2)).isfinite().all()
    with sdpa_kernel(backend):
        seen = scaled_dot_product_attention(query, query, value, attn_mask=mask)
        true = scaled_dot_product_attention(query.float(), query.float(), value.float(), attn_mask=mask)
    assert (seen.float() - true).abs().max() < 4e-3
