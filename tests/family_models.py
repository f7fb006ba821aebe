"""One tiny config for each way in which a family's declarations branch, and the real model that transformers builds.

Importing this module needs tests/requirements-proof.txt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision_operators  # noqa: F401  # before whatever imports torchvision
import transformers
from torch import nn

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
HEADED = {**SMALL, "head_dim": 24}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
    "vision_use_head": False,
}
T5 = {"vocab_size": 96, "d_model": 64, "d_kv": 24, "d_ff": 80, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
GEMMA4_TEXT = {
    **HEADED,
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "global_head_dim": 32,
    "vocab_size_per_layer_input": 90,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
}
GEMMA4_EXPERTS = {
    **GEMMA4_TEXT,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 3,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "use_double_wide_mlp": True,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
}
GEMMA4_VISION = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "position_embedding_size": 64,
}
GEMMA4_AUDIO = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "output_proj_dims": 48,
    "subsampling_conv_channels": [16, 8],
}
MULTIMODAL4 = {"text_config": GEMMA4_TEXT, "vision_config": GEMMA4_VISION, "audio_config": GEMMA4_AUDIO}
CLIPPED4 = {**MULTIMODAL4, "vision_config": {**GEMMA4_VISION, "use_clipped_linears": True, "standardize": True}}
PALIGEMMA = {"vision_config": {**VISION, "model_type": "siglip_vision_model"}, "projection_dim": 64}

CONFIGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gemma": ("GemmaForCausalLM", HEADED),
    "gemma-bare": ("GemmaModel", HEADED),
    "gemma2": ("Gemma2ForCausalLM", HEADED),
    "gemma2-biased": ("Gemma2ForCausalLM", {**HEADED, "attention_bias": True}),
    "gemma4-text": ("Gemma4ForCausalLM", GEMMA4_TEXT),
    "gemma4-experts": ("Gemma4ForCausalLM", GEMMA4_EXPERTS),
    "gemma4": ("Gemma4ForConditionalGeneration", MULTIMODAL4),
    "gemma4-clipped": ("Gemma4ForConditionalGeneration", CLIPPED4),
    "llama": ("LlamaForCausalLM", SMALL),
    "llama-tied": ("LlamaForCausalLM", {**SMALL, "tie_word_embeddings": True, "head_dim": 24}),
    "llama-biased": ("LlamaForCausalLM", {**SMALL, "attention_bias": True, "mlp_bias": True}),
    "llama-bare": ("LlamaModel", SMALL),
    "mistral": ("MistralForCausalLM", HEADED),
    "mistral-tied": ("MistralForCausalLM", {**SMALL, "tie_word_embeddings": True}),
    "paligemma": (
        "PaliGemmaForConditionalGeneration",
        {**PALIGEMMA, "text_config": {**HEADED, "model_type": "gemma"}},
    ),
    "paligemma2": (
        "PaliGemmaForConditionalGeneration",
        {**PALIGEMMA, "text_config": {**HEADED, "model_type": "gemma2"}},
    ),
    "qwen2": ("Qwen2ForCausalLM", SMALL),
    "qwen2-tied": ("Qwen2ForCausalLM", {**SMALL, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", HEADED),
    "t5": ("T5ForConditionalGeneration", T5),
    "t5-gated": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
    "t5-bare": ("T5Model", T5),
    "t5-encoder": ("T5EncoderModel", T5),
}


def skeleton(architecture: str, config: Mapping[str, Any]) -> Any:  # noqa: ANN401  # a class of transformers
    """The model without memory for its weights."""
    build = getattr(transformers, architecture)
    with torch.device("meta"):
        return build(build.config_class(**config))


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """A sound checkpoint, as ``save_pretrained`` writes it: gains near their neutral element, no clamp in force."""
    architecture, config = CONFIGS[name]
    build = getattr(transformers, architecture)
    torch.manual_seed(0)
    model = build(build.config_class(**config))
    for part in model.parameters():
        nn.init.normal_(part, 0.02) if part.dim() < 2 else nn.init.normal_(part, std=part[0].numel() ** -0.5)
    for part, buffer in model.named_buffers():
        if part.endswith(("std_bias", "std_scale")):  # transformers leaves them uninitialised
            nn.init.normal_(buffer, 1)
    model.to(dtype).save_pretrained(folder)
