"""The expressions of decoders against arithmetic in NumPy, rounding to float16, and what a whole model's ranges say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    Array,
    healthy,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    tiny_gemma3n_text_config,
)
from examinations import examine
from hypothesis import given
from hypothesis import strategies as st
from networks import Doubles, stats_of

from gemma_doctor.architectures import identify
from gemma_doctor.architectures.base import Value
from gemma_doctor.architectures.bounds import Prover
from gemma_doctor.architectures.expressions import (
    AfterNorm,
    Dot,
    Either,
    Input,
    Linear,
    Matched,
    Product,
    Rotated,
    Row,
    Shifted,
    Slice,
    Sum,
    Times,
    Weighted,
    Within,
)
from gemma_doctor.architectures.inequalities import Bound, Unproven
from gemma_doctor.architectures.ranges import BoundedValue, RangeAnalysis, stream_gains
from gemma_doctor.architectures.rounding import growth, in_float16
from gemma_doctor.tensors import MeasuredTensor, TensorInfo

CHANNELS = 6
ROUNDING = 1 + 1e-9
GEMMA3 = tiny_gemma3_config()
MULTIMODAL = tiny_gemma3_multimodal_config()


def normed(rng: np.random.Generator) -> Doubles:
    """Vectors over channels as an RMS norm leaves them, some with all in one channel; shape (CHANNELS, 40)."""
    x = rng.normal(size=(CHANNELS, 40)) * 10 ** rng.uniform(-3, 3, (CHANNELS, 40))
    unit: Doubles = x / np.sqrt(np.mean(x**2, axis=0) + 1e-6)
    return unit


def _made(rng: np.random.Generator, kind: str) -> tuple[Input, Doubles, dict[str, Doubles]]:
    """An expression, vectors that it stands for, and its tensors."""
    unit, other, gain = normed(rng), normed(rng), rng.normal(size=CHANNELS)
    source, right = AfterNorm("gain", CHANNELS, plus_one=True), AfterNorm(None, CHANNELS)
    x = (1 + gain)[:, None] * unit
    weight, angle = rng.normal(size=(CHANNELS, 4)), rng.uniform(0, 7, (CHANNELS // 2, 40))
    low, high = x[: CHANNELS // 2], x[CHANNELS // 2 :]
    turned = [low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)]
    rms = np.sqrt(np.mean(unit**2, axis=0))
    found: Mapping[str, tuple[Input, Doubles]] = {
        "norm": (source, x),
        "row": (Row("weight", 3.0), 3 * weight.T),
        "x @ W": (Linear("weight", source, inputs=CHANNELS), weight.T @ x),
        "shifted": (Shifted("gain", source), x + gain[:, None]),
        "times": (Times(-2.5, source), -2.5 * x),
        "slice": (Slice(source, 2), x[:2]),
        "rotated": (Rotated(source), np.concatenate(turned)),
        "either": (Either((source, right)), np.concatenate([x, other], axis=1)),
        "product": (Product(source, right), x * other),
        "weighted": (Weighted(Within(0.7, 4, "tanh"), source), rng.uniform(-0.7, 0.7, 40) * x),
        "dot": (Dot(source, right), np.sum(x * other, axis=0, keepdims=True)),
        "matched": (Matched(right, source, CHANNELS), unit / rms * np.sqrt(np.mean(x**2, axis=0))),
    }
    return *found[kind], {"gain": gain, "weight": weight}


KINDS = (
    "norm",
    "row",
    "x @ W",
    "shifted",
    "times",
    "slice",
    "rotated",
    "either",
    "product",
    "weighted",
    "dot",
    "matched",
)


@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
def test_no_vector_exceeds_its_expressions_bound(kind: str, seed: int) -> None:
    source, x, tensors = _made(np.random.default_rng(seed), kind)
    proof = Prover({name: stats_of(tensor) for name, tensor in tensors.items()}).bound(source)
    assert isinstance(proof, Bound)
    assert np.abs(x).max() <= proof.peak * ROUNDING
    assert np.sqrt((x**2).sum(axis=0)).max() <= proof.norm * ROUNDING


def test_bounds_are_reached_where_vectors_line_up() -> None:
    ones, stats = AfterNorm(None, 4), {"gain": stats_of(np.full(4, 0.5)), "weight": stats_of(np.ones((4, 3)))}
    prover = Prover(stats)
    cases: list[tuple[Input, float]] = [
        (AfterNorm("gain", 4, plus_one=True), 3.0),
        (Linear("weight", Within(1.0, 4, "ones"), inputs=4), 4.0),
        (Product(Within(2.0, 1, ""), Within(3.0, 1, "")), 6.0),
        (Dot(ones, ones), 4.0),
        (Rotated(Within(1.0, 2, "")), math.sqrt(2)),
        (Slice(Within(1.0, 9, ""), 4), 1.0),
    ]
    for source, peak in cases:
        proof = prover.bound(source)
        assert isinstance(proof, Bound)
        assert proof.peak == pytest.approx(peak)


def test_the_norm_behind_a_product_x_w_may_reach_the_frobenius_norm() -> None:
    source, weight = AfterNorm(None, 6), np.ones((6, 4))
    proof = Prover({"weight": stats_of(weight)}).bound(Linear("weight", source, inputs=6))
    assert isinstance(proof, Bound)
    assert np.linalg.norm(weight.T @ np.ones(6)) == pytest.approx(proof.norm)


def test_a_measured_peak_takes_the_place_of_a_larger_bound_only() -> None:
    prover, source = Prover({}), Within(10.0, 4, "pixels")
    prover.assume(source, 11.0)
    assert prover.bound(source) == Bound(10.0, 20.0, "pixels")
    prover.assume(source, 2.0)
    assert prover.bound(source) == Bound(2.0, 20.0, "the peak in the trace")


def _measured(array: Doubles, dtype: str = "F32") -> MeasuredTensor:
    return MeasuredTensor(TensorInfo("t", dtype, array.shape, "", 0, 4 * array.size), stats_of(array), "linear")


@given(st.integers(0, 2**32 - 1), st.floats(-12, 4))
def test_figures_of_a_tensor_bound_those_of_its_rounding_to_float16(seed: int, scale: float) -> None:
    array = np.random.default_rng(seed).normal(size=(4, 7)) * 10**scale
    bounds, rounded = in_float16(_measured(array)), stats_of(array.astype(np.float16).astype(np.float64))
    assert (bounds.minimum, bounds.maximum) == (rounded.minimum, rounded.maximum)
    for bound, figure in (
        (bounds.row_l1_max, rounded.row_l1_max),
        (bounds.row_squares_max, rounded.row_squares_max),
        (bounds.squares, rounded.squares),
    ):
        assert bound is not None
        assert figure is not None
        assert figure <= float(bound) * ROUNDING


def test_weights_beyond_float16_prove_nothing() -> None:
    array = np.array([[1.0, 7e4]])
    stats = replace(stats_of(array), fp16_overflow=1)
    assert in_float16(replace(_measured(array), stats=stats)).inf == 1
    assert in_float16(_measured(np.ones((1, 2)), "F16")) == stats_of(np.ones((1, 2)))


def test_exact_arithmetic_rounds_nothing() -> None:
    source = AfterNorm(None, 4)
    assert growth(source, "exact") == 1.0 < growth(source, "float16")


# Whole models.


def analysed(config: Mapping[str, Any], tensors: Mapping[str, Array]) -> RangeAnalysis:
    return examine(tensors, config).ranges


def louder(tensors: Mapping[str, Array], name: str, amount: float) -> dict[str, Array]:
    """With something added to every element of a tensor."""
    return {**tensors, name: tensors[name] + np.float32(amount)}


@pytest.mark.parametrize("config", [GEMMA3, tiny_gemma3_multimodal_config()])
def test_a_healthy_gemma3_is_certified(config: Mapping[str, Any]) -> None:
    analysis = analysed(config, healthy(config))
    assert analysis.certified
    assert len(analysis.values) > 40
    assert all(item.bits_beyond is not None and item.bits_beyond < 0 for item in analysis.values)


def loud_heads() -> dict[str, Array]:
    """An image encoder whose queries and keys fit float16, and whose products of them need not."""
    tensors = healthy(MULTIMODAL)
    for part in ("q_proj", "k_proj"):
        tensors[f"vision_tower.vision_model.encoder.layers.0.self_attn.{part}.weight"] *= np.float32(400.0)
    return tensors


def test_scores_that_only_eager_attention_writes_are_counted_apart() -> None:
    analysis = analysed(MULTIMODAL, loud_heads())
    (item,) = (item for item in analysis.values if not item.safe)
    assert item.value.name == "vision_tower.vision_model.encoder.layers.0.self_attn (scores)"
    assert item.eager_only
    assert item in analysis.scores
    assert item not in analysis.written
    assert analysis.certified
    assert len(analysis.written) + len(analysis.scores) == len(analysis.values)


def test_what_every_attention_writes_is_not_excused() -> None:
    tensors = loud_heads()
    tensors["vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"] *= np.float32(1000.0)
    assert not analysed(MULTIMODAL, tensors).certified


def test_a_stream_is_the_sum_of_its_writers_and_the_largest_comes_first() -> None:
    name = "model.layers.1.post_attention_layernorm.weight"
    analysis = analysed(GEMMA3, louder(healthy(GEMMA3), name, 1e4))
    (stream,) = analysis.streams().values()
    writers = analysis.writers(stream)
    assert writers[0].tensor == name
    assert len(writers) == 5
    assert stream.bound == pytest.approx(sum(writer.bound for writer in writers), rel=0.01)
    assert stream.is_plain
    assert (stream.value.name, stream.value.limit) == ("model.layers.1", 65504)
    assert writers[0].bound == pytest.approx(4 * 10001, rel=0.1)


def test_a_stream_with_one_writer_that_goes_through_matrices_is_no_plain_sum() -> None:
    stream = analysed(MULTIMODAL, healthy(MULTIMODAL)).streams()["the image encoder's residual stream"]
    assert not stream.is_plain


def test_gains_in_front_of_a_layer_scale_are_wanted_element_by_element_as_well() -> None:
    gains = stream_gains(identify(tiny_gemma3n_config()))
    block = "model.vision_tower.timm_model.blocks.1.1."
    assert {f"{block}layer_scale.gamma", f"{block}pw_proj.bn.weight"} <= gains


def test_altup_multiplies_the_bound_in_every_layer_and_is_no_plain_sum() -> None:
    config = tiny_gemma3n_text_config()
    analysis = analysed(config, healthy(config))
    layers = [f"model.layers.{index}" for index in range(6)]
    bounds = [item.bound or 0.0 for item in analysis.values if item.value.name in layers]
    assert len(bounds) == 6
    assert all(bounds[index + 1] > 3 * bounds[index] for index in range(5))
    assert not analysis.certified


def test_what_is_not_finite_or_missing_is_not_proved() -> None:
    name = "model.layers.0.post_attention_layernorm.weight"
    for tensors in (louder(healthy(GEMMA3), name, np.nan), {k: v for k, v in healthy(GEMMA3).items() if k != name}):
        analysis = analysed(GEMMA3, tensors)
        (stream,) = analysis.streams().values()
        assert (stream.bound, stream.safe, stream.bits_beyond) == (None, False, None)
        assert name in stream.derivation
        assert not analysis.certified


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hidden_activation": "relu2"}, "the activation 'relu2' is not known"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rotary embedding of type 'yarn' scales its result"),
        ({"architectures": ["Gemma3TextForSequenceClassification"]}, "a classifier's head is not analysed"),
    ],
)
def test_what_is_not_known_is_not_proved(change: Mapping[str, Any], why: str) -> None:
    config = {**GEMMA3, **change}
    analysis = analysed(config, healthy(config))
    assert why in {item.derivation for item in analysis.values if not item.safe}


def test_the_pooling_head_of_the_image_encoder_is_not_analysed() -> None:
    config = tiny_gemma3_multimodal_config()
    config["vision_config"]["vision_use_head"] = True
    (item,) = (item for item in analysed(config, healthy(config)).values if not item.safe)
    assert item.value.name == "vision_tower.vision_model.head"


def test_linear_rotary_scaling_is_known() -> None:
    config = {**GEMMA3, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}
    assert analysed(config, healthy(config)).certified


def test_scores_count_as_they_are_once_they_are_scaled_up() -> None:
    """Transformers 5.23 takes whole numbers for the scalar, which never scale up; an older config may say a quarter."""
    bounds = []
    for scalar in (256, 0.25):
        config = {**GEMMA3, "query_pre_attn_scalar": scalar}
        bounds += [item.bound for item in analysed(config, healthy(config)).scores[:1]]
    one, doubled = bounds
    assert one is not None
    assert doubled == pytest.approx(2 * one, rel=0.01)


def test_an_older_stem_without_bias_is_analysed_as_if_it_were_zero() -> None:
    config, stem = tiny_gemma3n_config(), "model.vision_tower.timm_model.conv_stem.conv"
    analysis = analysed(config, {name: array for name, array in healthy(config).items() if name != f"{stem}.bias"})
    (item,) = (item for item in analysis.values if item.value.name == stem)
    assert item.safe


def test_a_bound_must_be_below_its_limit() -> None:
    value = Value("v", "linear", Within(1.0, 1, "given"), 256.0)
    assert [BoundedValue(value, bound, "").safe for bound in (255.9, 256.0, math.inf, None)] == [
        True,
        False,
        False,
        False,
    ]


def test_names_of_values_are_unique_and_rescalings_name_known_ones() -> None:
    for config in (GEMMA3, tiny_gemma3_multimodal_config(), tiny_gemma3n_text_config()):
        model = identify(config)
        names = [value.name for value in model.values]
        assert len(names) == len(set(names))
        for rescaling in model.rescalings:
            assert {*rescaling.values, *rescaling.behind} <= set(names)
            assert {*rescaling.smaller, *rescaling.larger} <= model.expected.keys()


def test_sums_of_unproven_terms_are_unproven() -> None:
    assert isinstance(Prover({}).bound(Sum((Row("absent"), Within(1.0, 1, "")))), Unproven)
