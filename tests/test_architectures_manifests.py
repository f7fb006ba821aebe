"""What a config declares is what the real models hold: every name, shape and module class."""

from __future__ import annotations

import math
from collections import Counter

import architecture_data
import pytest

from gemma_doctor.architectures import identify
from gemma_doctor.architectures.base import Expected, Model, SharedKV


def _stored(model: Model) -> dict[str, Expected]:
    """What is on disk: everything but a tied head."""
    return {name: tensor for name, tensor in model.expected.items() if tensor.need != "tied-head"}


@pytest.mark.parametrize("name", architecture_data.MODELS)
def test_every_name_shape_and_class_is_declared(name: str) -> None:
    model = identify(architecture_data.config(name))
    declared = {tensor: (expected.shape, expected.module) for tensor, expected in _stored(model).items()}
    assert declared == architecture_data.manifest(name)
    assert 2 * sum(math.prod(shape) for shape, _ in declared.values()) == architecture_data.total_bytes(name)


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("gemma-3-270m", 236),
        ("gemma-3-1b", 340),
        ("gemma-3-4b", 883),
        ("gemma-3-12b", 1065),
        ("gemma-3-27b", 1247),
        ("gemma-3n-E2B", 1556),
        ("gemma-3n-E4B", 1676),
    ],
)
def test_the_number_of_tensors(name: str, tensors: int) -> None:
    assert len(_stored(identify(architecture_data.config(name)))) == tensors


@pytest.mark.parametrize(("name", "tensors"), [("gemma-3n-E2B", 1526), ("gemma-3n-E4B", 1631)])
def test_tensors_of_layers_that_share_kv_may_be_absent(name: str, tensors: int) -> None:
    model = identify(architecture_data.config(name))
    assert sum(tensor.need in {"required", "stem-bias"} for tensor in model.expected.values()) == tensors
    shared = {name for name, tensor in model.expected.items() if tensor.need == "shared-kv"}
    assert shared == set(model.shared_kv)


@pytest.mark.parametrize(("name", "layers"), [("gemma-3n-E2B", range(20, 30)), ("gemma-3n-E4B", range(20, 35))])
def test_the_donor_is_the_last_layer_of_its_kind_that_does_not_share(name: str, layers: range) -> None:
    model = identify(architecture_data.config(name))
    attention = "model.language_model.layers.{}.self_attn.{}.weight"
    assert model.shared_kv == {
        attention.format(layer, tensor): SharedKV(layer, 19 if layer % 5 == 4 else 18)
        for layer in layers
        for tensor in ("k_proj", "v_proj", "k_norm")
    }


def test_a_merged_checkpoint_is_read_right() -> None:
    model = identify(architecture_data.merged_config())
    assert set(_stored(model)) == architecture_data.merged_names()
    assert model.dtype == "float16"
    assert model.tied_head == ("lm_head.weight", "model.language_model.embed_tokens.weight")


def test_rows_beyond_the_per_layer_vocabulary_copy_the_pad_row() -> None:
    table = "model.language_model.embed_tokens.weight"
    assert identify(architecture_data.config("gemma-3n-E4B")).pad_rows == {table: (262_144, 262_400)}
    assert identify({"model_type": "gemma3n_text", "vocab_size": 262_144}).pad_rows == {}
    assert identify(architecture_data.config("gemma-3-4b")).pad_rows == {}


def test_roles_follow_the_module() -> None:
    roles = {
        name: Counter(tensor.role for tensor in _stored(identify(architecture_data.config(name))).values())
        for name in ("gemma-3-4b", "gemma-3n-E2B")
    }
    assert roles["gemma-3-4b"] == {"linear": 401, "bias": 218, "norm": 261, "embedding": 2, "conv": 1}
    assert roles["gemma-3n-E2B"] == {
        "linear": 562,
        "conv": 296,
        "norm": 570,
        "other": 123,
        "embedding": 4,
        "bias": 1,
    }


def test_only_the_stem_bias_may_be_missing_from_an_old_vision_checkpoint() -> None:
    model = identify(architecture_data.config("gemma-3n-E2B"))
    young = [name for name, tensor in model.expected.items() if tensor.need == "stem-bias"]
    assert young == ["model.vision_tower.timm_model.conv_stem.conv.bias"]


@pytest.mark.parametrize(
    ("name", "head"), [("gemma-3-1b", "lm_head.weight"), ("gemma-3-4b", "language_model.lm_head.weight")]
)
def test_a_head_that_is_not_tied_is_required(name: str, head: str) -> None:
    tied = identify(architecture_data.config(name))
    assert tied.expected[head].need == "tied-head"
    assert tied.tied_head is not None
    untied = identify({**architecture_data.config(name), "tie_word_embeddings": False})
    assert untied.expected[head].need == "required"
    assert untied.tied_head is None
