"""Which model a config means, and that no config, however broken, ends in anything but one clear sentence."""

from __future__ import annotations

import copy
import pkgutil
from importlib import import_module
from typing import Any

import architecture_data
import checkpoints
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_doctor import architectures
from gemma_doctor.architectures import FAMILIES, identify
from gemma_doctor.errors import IndexFileError

TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 32, "num_kv_shared_layers": 0}


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"architectures": ["BertModel"], "model_type": "bert"},
        {"architectures": [], "model_type": "t5gemma"},
        {"architectures": None, "model_type": None},
    ],
)
def test_unknown_or_absent_is_generic(config: dict[str, Any] | None) -> None:
    model = identify(config)
    assert (model.family, model.expected, model.convs, model.layouts) == ("generic", {}, {}, ())


@pytest.mark.parametrize(
    ("config", "family", "embedding"),
    [
        ({"architectures": ["Gemma3ForCausalLM"]}, "gemma3", "model.embed_tokens.weight"),
        ({"model_type": "gemma3_text"}, "gemma3", "model.embed_tokens.weight"),
        ({"architectures": ["Gemma3TextModel"]}, "gemma3", "embed_tokens.weight"),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "gemma3", "language_model.model.embed_tokens.weight"),
        ({"model_type": "gemma3"}, "gemma3", "language_model.model.embed_tokens.weight"),
        ({"architectures": ["MyGemma"], "model_type": "gemma3"}, "gemma3", "language_model.model.embed_tokens.weight"),
        ({"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3"}, "gemma3", "model.embed_tokens.weight"),
        ({"architectures": ["Gemma3nForCausalLM"]}, "gemma3n", "model.embed_tokens.weight"),
        ({"model_type": "gemma3n_text"}, "gemma3n", "model.embed_tokens.weight"),
        ({"model_type": "gemma3n"}, "gemma3n", "model.language_model.embed_tokens.weight"),
        ({"model_type": "gemma"}, "gemma", "model.embed_tokens.weight"),
        ({"architectures": ["Gemma2Model"]}, "gemma2", "embed_tokens.weight"),
        ({"model_type": "gemma4"}, "gemma4", "model.language_model.embed_tokens.weight"),
        ({"model_type": "gemma4_text"}, "gemma4", "model.embed_tokens.weight"),
        ({"architectures": ["MyLlamaForCausalLM"], "model_type": "llama"}, "llama", "model.embed_tokens.weight"),
        ({"model_type": "paligemma"}, "paligemma", "language_model.model.embed_tokens.weight"),
        ({"model_type": "qwen2"}, "qwen2", "model.embed_tokens.weight"),
        ({"model_type": "qwen3"}, "qwen3", "model.embed_tokens.weight"),
        ({"architectures": ["T5EncoderModel"]}, "t5", "shared.weight"),
    ],
)
def test_architectures_decide_before_model_type(config: dict[str, Any], family: str, embedding: str) -> None:
    model = identify(config)
    assert model.family == family
    assert model.expected[embedding].role == "embedding"


def test_a_text_model_may_keep_its_config_in_a_section() -> None:
    nested = identify({"architectures": ["Gemma3ForCausalLM"], "text_config": TEXT})
    assert nested.expected == identify({"architectures": ["Gemma3ForCausalLM"], **TEXT}).expected
    assert nested.expected["model.embed_tokens.weight"].shape == (32, 16)


def test_attention_bias_adds_a_bias_to_each_projection() -> None:
    for architecture in ("Gemma3ForCausalLM", "Gemma3nForCausalLM"):
        model = identify({"architectures": [architecture], **TEXT, "attention_bias": True})
        biases = {name.split(".")[-2] for name, tensor in model.expected.items() if tensor.role == "bias"}
        assert biases == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_siglip_keeps_its_pooling_head_unless_told_otherwise() -> None:
    def tensors(vision: dict[str, Any]) -> set[str]:
        return set(identify({"model_type": "gemma3", "text_config": TEXT, "vision_config": vision}).expected)

    dropped = tensors({}) - tensors({"vision_use_head": False})
    assert len(dropped) == 11
    assert all(name.startswith("vision_tower.vision_model.head.") for name in dropped)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_the_dtype_is_found_on_either_level(key: str) -> None:
    assert identify({"model_type": "bert", key: "float16"}).dtype == "float16"
    assert identify({"model_type": "gemma3_text", **TEXT, key: "torch.bfloat16"}).dtype == "bfloat16"
    nested = {"model_type": "gemma3", "text_config": {**TEXT, key: "bfloat16"}}
    assert identify(nested).dtype == "bfloat16"
    assert identify({**nested, "torch_dtype": "float16"}).dtype == "float16"


def test_quantised_weights_are_generic() -> None:
    quantised = {**architecture_data.config("gemma-3-1b"), "quantization_config": {"quant_method": "bitsandbytes"}}
    model = identify(quantised)
    assert (model.family, model.expected, model.dtype) == ("generic", {}, None)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ([], ["config.json", "a list of 0 items", "an object"]),
        ({"architectures": "Gemma3ForCausalLM"}, ["architectures", "'Gemma3ForCausalLM'", "list"]),
        ({"architectures": [7]}, ["architectures", "a list of strings"]),
        ({"model_type": 3}, ["model_type", "3", "a string"]),
        ({"torch_dtype": ["float16"]}, ["torch_dtype", "a string"]),
        ({"model_type": "gemma3_text", "num_hidden_layers": 10**9}, ["num_hidden_layers", "1000000000", "1 to 1024"]),
        ({"model_type": "gemma3_text", "num_hidden_layers": 10**5000}, ["num_hidden_layers", "16610 bits"]),
        ({"model_type": "gemma3_text", "num_hidden_layers": 2.0}, ["num_hidden_layers", "2.0", "an integer"]),
        ({"model_type": "gemma3_text", "num_hidden_layers": True}, ["num_hidden_layers", "True", "an integer"]),
        ({"model_type": "gemma3_text", "hidden_size": -1}, ["hidden_size", "-1", "1 to 16777216"]),
        ({"model_type": "gemma3_text", "vocab_size": "many"}, ["vocab_size", "'many'"]),
        ({"model_type": "gemma3_text", "vocab_size": "x" * 9000}, ["vocab_size", "(9000 characters)"]),
        ({"model_type": "gemma3_text", "tie_word_embeddings": "yes"}, ["tie_word_embeddings", "true or false"]),
        ({"model_type": "gemma3", "text_config": 5}, ["text_config", "5", "an object"]),
        (
            {"model_type": "gemma3", "vision_config": {"image_size": [448, 448]}},
            ["vision_config.image_size", "2 items"],
        ),
        ({"model_type": "gemma3", "vision_config": {"image_size": 8}}, ["vision_config.image_size", "patch_size, 16"]),
        ({"model_type": "gemma3n_text", "layer_types": ["full_attention"]}, ["layer_types", "1 items", "35"]),
        ({"model_type": "gemma3n_text", "num_kv_shared_layers": 35}, ["num_kv_shared_layers", "35", "0 to 34"]),
        ({"model_type": "gemma3n_text", "num_kv_shared_layers": 31}, ["num_kv_shared_layers", "'full_attention'"]),
        ({"model_type": "gemma4_text", "num_kv_shared_layers": 25}, ["num_kv_shared_layers", "'full_attention'"]),
        ({"model_type": "gemma4_text", "layer_types": []}, ["layer_types", "0 items", "30"]),
        ({"model_type": "gemma4_text", "per_layer_config": {"5": 1}}, ["per_layer_config.5", "an object"]),
        (
            {"model_type": "gemma4", "audio_config": {"hidden_size": 4}},
            ["audio_config.hidden_size", "num_attention_heads, 8"],
        ),
        (
            {"model_type": "gemma4", "audio_config": {"subsampling_conv_channels": [3, 1]}},
            ["audio_config.subsampling_conv_channels", "at least 4 and 1"],
        ),
        ({"model_type": "llama", "hidden_size": 8}, ["head_dim", "0", "1 to 16777216"]),
        ({"model_type": "t5", "feed_forward_proj": 1}, ["feed_forward_proj", "a string"]),
        ({"model_type": "gemma3n_text", "intermediate_size": [1, 2]}, ["intermediate_size", "35 integers"]),
        ({"model_type": "gemma3n_text", "intermediate_size": [1] * 10**6}, ["intermediate_size", "1000000 items"]),
        ({"model_type": "gemma3n", "vision_config": {"model_args": 1}}, ["vision_config.model_args", "an object"]),
        (
            {"model_type": "gemma3n", "vision_config": {"model_args": {"channel_multiplier": float("nan")}}},
            ["vision_config.model_args.channel_multiplier", "not a number", "0 to 64"],
        ),
        ({"model_type": "gemma3n", "audio_config": {"hidden_size": 9}}, ["audio_config.hidden_size", "multiple", "8"]),
        (
            {
                "model_type": "gemma3n",
                "audio_config": {"input_feat_size": 1, "sscp_conv_kernel_size": [[3, 9], [3, 3]]},
            },
            ["audio_config.input_feat_size", "9 wide"],
        ),
        (
            {"model_type": "gemma3n", "audio_config": {"sscp_conv_stride_size": [[2, 2, 2], [2, 2]]}},
            ["audio_config.sscp_conv_stride_size", "2 pairs"],
        ),
        (
            {"model_type": "gemma3n", "audio_config": {"sscp_conv_stride_size": [[2, 2]]}},
            ["audio_config.sscp_conv_stride_size", "2 pairs"],
        ),
    ],
)
def test_a_broken_config_is_refused_by_key_and_limit(config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(IndexFileError, match=r"^config\.json") as caught:
        identify(config)
    message = str(caught.value)
    assert [word for word in words if word not in message] == []
    assert len(message) < 300


def test_the_deepest_config_that_is_allowed_stays_small() -> None:
    deepest = {
        "model_type": "gemma3n",
        "text_config": {"num_hidden_layers": 1024, "num_kv_shared_layers": 1000, "altup_num_inputs": 64},
        "audio_config": {"conf_num_hidden_layers": 1024},
    }
    assert len(identify(deepest).expected) < 60_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)
GEMMA4: dict[str, Any] = {
    "model_type": "gemma4",
    "text_config": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "per_layer_config": {"2": {"head_dim": 32}},
        "enable_moe_block": True,
        "num_experts": 4,
    },
    "vision_config": {"num_hidden_layers": 1, "use_clipped_linears": True, "standardize": True},
    "audio_config": {"num_hidden_layers": 1, "subsampling_conv_channels": [16, 8]},
}
PALIGEMMA: dict[str, Any] = {
    "model_type": "paligemma",
    "text_config": {"model_type": "gemma2", "num_hidden_layers": 1},
    "vision_config": {"hidden_size": 32, "num_hidden_layers": 1},
    "projection_dim": 16,
}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 1,
    "head_dim": 8,
    "mlp_bias": True,
    "attention_bias": False,
}
T5: dict[str, Any] = {
    "architectures": ["T5Model"],
    "num_layers": 1,
    "num_decoder_layers": 1,
    "feed_forward_proj": "relu",
}
CONFIGS = (
    GEMMA4,
    PALIGEMMA,
    LLAMA,
    T5,
    checkpoints.tiny_gemma3_config(),
    checkpoints.tiny_gemma3_multimodal_config(),
    checkpoints.tiny_gemma3n_config(),
)


def _places(config: dict[str, Any]) -> list[tuple[str, ...]]:
    """The path of every value in a config."""
    found: list[tuple[str, ...]] = []
    for key, value in config.items():
        found.append((key,))
        if isinstance(value, dict):
            found += [(key, *rest) for rest in _places(value)]
    return found


@st.composite
def _damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A sound config with one or two values replaced by any JSON value."""
    config: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(CONFIGS)))
    for _ in range(draw(st.integers(1, 2))):
        *parents, key = draw(st.sampled_from(_places(config)))
        section = config
        for parent in parents:
            section = section[parent]
        section[key] = draw(JSON | st.integers(0, 80))
    return config


@given(_damaged())
def test_any_damage_gives_a_model_or_one_sentence(config: dict[str, Any]) -> None:
    try:
        model = identify(config)
    except IndexFileError as error:
        assert str(error).startswith("config.json: ")  # noqa: PT017
    else:
        assert len(model.expected) < 10_000
        assert all(extent >= 1 for tensor in model.expected.values() for extent in tensor.shape)


@given(st.dictionaries(st.sampled_from(["architectures", "model_type", "dtype", "text_config"]) | st.text(), JSON))
def test_any_object_gives_a_model_or_one_sentence(config: dict[str, Any]) -> None:
    try:
        model = identify(config)
    except IndexFileError as error:
        assert str(error).startswith("config.json: ")  # noqa: PT017
    else:
        assert model.family == "generic" or any(model.family in family.model_types for family in FAMILIES)


def test_every_family_of_the_folder_is_in_the_table() -> None:
    names = [module.name for module in pkgutil.iter_modules(architectures.__path__)]
    modules = [import_module(f"{architectures.__name__}.{name}") for name in names]
    assert [module.FAMILY for module in modules if hasattr(module, "FAMILY")] == list(FAMILIES)
