"""Guarded models in use: copied, saved, cast, trained, adapted, exported, served by threads; and what is refused."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import transformers
from guarded import CONFIGS, Infinities, error, loud, planted, sound, tower
from safetensors.torch import load_file
from tiny_models import features, skeleton
from torch import nn

from gemma_doctor.errors import UsageError
from gemma_doctor.kernels import guard, unguard
from gemma_doctor.kernels.guards import gemma3
from gemma_doctor.kernels.guards.convolutions import RowScale, convolve
from gemma_doctor.kernels.guards.replacements import is_guarded
from gemma_doctor.kernels.guards.scaling import row_bounds

IDS = torch.arange(3, 19)[None]


@pytest.fixture(autouse=True)
def no_gradients() -> object:
    with torch.no_grad():
        yield


def says(model: Any) -> torch.Tensor:  # noqa: ANN401  # a class of transformers or timm
    """What a text model says to a text, or the image encoder to an image."""
    output: torch.Tensor = model(input_ids=IDS).logits if hasattr(model, "config") else features(model)
    return output


def breaking(name: str, dtype: torch.dtype) -> Any:  # noqa: ANN401  # a class of transformers or timm
    """A model that float16 breaks, by its name; or the image encoder."""
    return tower("published", dtype) if name == "encoder" else loud(name, dtype)


# Copied, saved and cast


@pytest.mark.parametrize("name", ["encoder", *CONFIGS])
def test_a_saved_model_is_guarded_when_it_is_loaded_again(name: str) -> None:
    model = breaking(name, torch.float16)
    guard(model)
    wanted, file = says(model), io.BytesIO()
    torch.save(model, file)
    unguard(model)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(says(again), wanted)
    unguard(again)
    assert not any("forward" in module.__dict__ for module in again.modules())


@pytest.mark.parametrize("name", ["gemma3", "gemma3n"])
def test_what_is_saved_as_a_checkpoint_are_the_weights_as_they_were(name: str, tmp_path: Path) -> None:
    model = loud(name, torch.float16)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    guard(model)
    model.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert written
    assert all(torch.equal(value, state[name]) for name, value in written.items())
    loaded = type(model).from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.float16
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("name", ["encoder", *CONFIGS])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float16), (torch.float16, torch.bfloat16)], ids=str)
def test_a_model_that_is_cast_later_is_guarded_as_if_it_had_been_cast_before(
    name: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    before, after = dtypes
    late, early = breaking(name, before), breaking(name, before).to(after)
    guard(late)
    guard(early)
    says(late)
    found = says(late.to(after))
    assert found.dtype == says(early).dtype
    assert error(found, says(early)) < 2.0**-9 if after == torch.float16 else 2.0**-6


def test_weights_that_lie_channels_last_do_no_harm() -> None:
    model = tower("published", torch.float16)
    guard(model)
    model.to(memory_format=torch.channels_last)
    with Infinities() as infinities:
        found = features(model)
    assert infinities.seen == []
    assert error(found, features(tower("published", torch.float32))) < 0.03


def test_a_guard_of_one_model_leaves_another_alone() -> None:
    one, other = (tower("published", torch.float16) for _ in range(2))
    guard(one)
    guard(other)
    wanted = features(other)
    unguard(one)
    assert torch.equal(features(other), wanted)
    assert not torch.equal(features(one), wanted)


def test_weights_that_double_still_fit_and_larger_ones_want_another_call() -> None:
    """The exponents leave one bit of room, and are chosen once."""
    conv, x = nn.Conv2d(64, 2, 1, bias=False).half(), torch.full((1, 64, 1, 1), 1000.0, dtype=torch.float16)
    conv.weight.fill_(1.0)
    scale = RowScale(row_bounds(conv.weight, 1000.0), conv.weight)
    results = []
    for _ in range(3):
        results.append(float(convolve(conv, x, scale).amax()))
        conv.weight *= 2
    assert results == [32_000.0, 64_000.0, float("inf")]
    again = RowScale(row_bounds(conv.weight, 1000.0), conv.weight)
    assert float(convolve(conv, x, again).amax()) == 32_000.0


# Served


@pytest.mark.parametrize("name", ["gemma3", "gemma3n"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_batches_that_are_padded_on_the_left(name: str, attention: str) -> None:
    ids = torch.stack([torch.arange(3, 15), torch.arange(19, 31)])
    mask = torch.ones_like(ids)
    mask[1, :5] = 0

    def said(dtype: torch.dtype) -> torch.Tensor:
        model = loud(name, dtype)
        model.set_attn_implementation(attention)
        if dtype == torch.float16:
            guard(model)
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
        return logits[mask.bool()]

    assert error(said(torch.float16), said(torch.float32)) < 2.0**-7


def test_embeddings_in_place_of_words() -> None:
    """Whoever looks them up by himself gives them in float16."""
    wide, half = loud("gemma3", torch.float32), loud("gemma3", torch.float16)
    given = wide.get_input_embeddings()(IDS).half()
    guard(half)
    assert error(half(inputs_embeds=given).logits, wide(inputs_embeds=given.float()).logits) < 2.0**-7


def test_threads_that_run_one_model_at_a_time() -> None:
    model = tower("published", torch.float16)
    guard(model)
    wanted, found = features(model), []
    threads = [Thread(target=lambda: found.append(features(model))) for _ in range(3)]
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    with torch.no_grad():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [torch.equal(one, wanted) for one in found] == [True] * 3
    assert torch.backends.cuda.cudnn_sdp_enabled() is enabled


def test_what_was_compiled_before_is_compiled_again() -> None:
    wanted = says(loud("gemma3", torch.float32))
    model = loud("gemma3", torch.float16)
    compiled = torch.compile(model, backend="eager")
    assert not error(says(compiled), wanted) < 0.1
    guard(model)
    assert error(says(compiled), wanted) < 2.0**-7
    unguard(model)
    assert not error(says(compiled), wanted) < 0.1


def test_exported() -> None:
    block = tower("published", torch.float16).blocks[2][9]
    guard(block)
    x = torch.randn((1, block.norm.weight.numel(), 8, 8), generator=torch.Generator().manual_seed(0)).half()
    assert error(torch.export.export(block, (x,)).module()(x), block(x)) < 2.0**-9
    text, given = loud("gemma3", torch.float16), {"input_ids": IDS, "use_cache": False}
    guard(text)
    assert error(torch.export.export(text, (), given).module()(**given).logits, says(text)) < 2.0**-9


# Trained


@pytest.mark.parametrize("when", ["when it was guarded", "before it was trained"])
def test_a_model_that_was_tried_out_can_be_trained(when: str) -> None:
    """What is made in inference mode must not be kept: autograd refuses it."""
    model = tower("published", torch.float32)
    with torch.inference_mode(when == "when it was guarded"):
        guard(model)
    model.half()
    with torch.inference_mode():
        features(model)
    with torch.enable_grad():
        features(model).float().mean().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


def trained(model: nn.Module, *, scaled: bool = False, autocast: bool = False) -> list[float]:
    """The losses of some steps of AdamW, perhaps with a loss scale."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, scaler = torch.optim.AdamW(learned, lr=2e-3), torch.amp.GradScaler("cpu", 2.0**8, enabled=scaled)
    losses = []
    with torch.enable_grad():
        for _ in range(6):
            with torch.autocast("cpu", torch.float16, enabled=autocast):
                loss = model(input_ids=IDS, labels=IDS).loss
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["gemma3", "gemma3n"])
def test_training_under_autocast_goes_as_in_float32(name: str) -> None:
    wanted = trained(loud(name, torch.float32))
    model = loud(name, torch.float32)
    guard(model)
    found = trained(model, scaled=True, autocast=True)
    assert wanted[-1] < wanted[0]
    assert found == pytest.approx(wanted, rel=0.01)


# Adapted by PEFT


def adapted(model: Any, targets: str | list[str], **settings: Any) -> Any:  # noqa: ANN401  # of PEFT
    """The model with adapters that are no zeros, always the same."""
    from peft import LoraConfig, get_peft_model, inject_adapter_in_model  # noqa: PLC0415  # seconds

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, **settings)
    return get_peft_model(model, config) if hasattr(model, "config") else inject_adapter_in_model(config, model)


ADAPTED: dict[str, tuple[str, str | list[str], dict[str, Any]]] = {
    "every layer": ("gemma3", "all-linear", {}),
    "every layer of gemma3n": ("gemma3n", "all-linear", {}),
    "embeddings": ("gemma3", ["embed_tokens"], {}),
    "copies of embeddings and norms": ("gemma3", ["q_proj"], {"modules_to_save": ["embed_tokens", "input_layernorm"]}),
    "convolutions": (
        "encoder",
        [f"blocks.2.9.attn.{name}.proj" for name in ("query", "key", "value", "output")]
        + ["blocks.2.30.pw_exp.conv", "blocks.0.0.conv_exp", "msfa.ffn.pw_proj.conv"],
        {},
    ),
}


warned = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:Model has `tie_word_embeddings:UserWarning",
)  # by PEFT


@warned
@pytest.mark.parametrize("what", ADAPTED)
@pytest.mark.parametrize("order", ["guard first", "peft first"])
def test_what_adapters_add_is_that_of_float32(what: str, order: str) -> None:
    name, targets, settings = ADAPTED[what]

    def adapts(dtype: torch.dtype) -> torch.Tensor:
        return says(adapted(breaking(name, dtype), targets, **settings))

    wanted = adapts(torch.float32)
    half = breaking(name, torch.float16)
    if order == "guard first":
        guard(half)
    half = adapted(half, targets, **settings)
    if order == "peft first":
        guard(half)
    assert error(says(half), wanted) < 0.5 * error(adapts(torch.bfloat16), wanted)
    assert error(says(breaking(name, torch.float32)), wanted) > 0.1


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning")
@pytest.mark.parametrize("order", ["guard first", "peft first"])
def test_adapters_of_the_audio_towers_convolutions(order: str) -> None:
    """PEFT gives one with groups, as those of the conformers are, a rank that these divide."""
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415  # seconds

    frames = torch.randn((1, 64, 128), generator=torch.Generator().manual_seed(1))

    def heard(dtype: torch.dtype, order: str = "no guard") -> torch.Tensor:
        audio = loud("gemma3n", dtype).model.audio_tower
        torch.manual_seed(0)
        targets = r".*(conv_0\.conv|conv_1\.conv|depthwise_conv1d)"
        config = LoraConfig(r=16, target_modules=targets, init_lora_weights=False)
        if order == "guard first":
            guard(audio)
        inject_adapter_in_model(config, audio)
        if order == "peft first":
            guard(audio)
        width = audio.config.input_feat_size
        result: torch.Tensor = audio(frames[..., :width].to(dtype), torch.zeros((1, 64), dtype=torch.bool))[0]
        return result

    wanted = heard(torch.float32)
    assert not error(heard(torch.float16), wanted) < 0.1
    assert error(heard(torch.float16, order), wanted) < 0.5 * error(heard(torch.bfloat16), wanted)


@warned
def test_adapters_are_trained_on_float16_weights_as_on_float32_and_merged() -> None:
    wide = adapted(loud("gemma3", torch.float32), "all-linear")
    half = loud("gemma3", torch.float16)
    guard(half)
    half = adapted(half, "all-linear")
    wanted, found = trained(wide), trained(half, scaled=True)
    assert wanted[-1] < wanted[0]
    assert found == pytest.approx(wanted, rel=0.01)
    merged = half.merge_and_unload()
    guard(merged)
    assert error(says(merged), says(wide.merge_and_unload())) < 2.0**-6


# Weights that ask for more


def test_attention_takes_one_dtype_where_some_of_its_products_need_float32() -> None:
    factors = {"model.layers.0.self_attn.v_proj.weight": 2.0**14, "model.layers.1.self_attn.q_proj.weight": 2.0**14}
    model = planted(sound("gemma3"), factors).half()
    wanted = says(planted(sound("gemma3"), factors))
    exact = {one.name for one in guard(model).replaced if "scaled by position" in one.what}
    assert {name.removesuffix(".weight") for name in factors} <= exact
    assert error(says(model), wanted) < 2.0**-8


@pytest.mark.parametrize("name", ["gemma3", "gemma3n"])
def test_an_embedding_that_leaves_float16(name: str) -> None:
    """Its product with sqrt(16) does; the row of the padding learns nothing, as ever."""
    model = loud(name, torch.float16)
    guard(model)
    embedding = model.get_input_embeddings()
    embedding.weight.fill_(30_000.0)
    with torch.enable_grad():
        found = embedding(torch.tensor([embedding.padding_idx, 5]))
        found.sum().backward()
    assert torch.equal(found, torch.full((2, 16), 120_000.0))
    assert [float(embedding.weight.grad[row].sum()) for row in (embedding.padding_idx, 5)] == [0.0, 64.0]


def test_a_product_that_fits_is_one_of_float16() -> None:
    model = loud("gemma3", torch.float16)
    guard(model)
    assert model.model.layers[0].self_attn.q_proj(torch.ones((1, 16))).dtype == torch.float16


@warned
def test_products_that_need_float32_are_found_in_wrappers_of_peft() -> None:
    factors = {"model.layers.0.self_attn.v_proj.weight": 2.0**14, "model.layers.1.mlp.up_proj.weight": 2.0**16}
    wide, half = (
        adapted(planted(sound("gemma3"), factors).to(dtype), "all-linear") for dtype in (torch.float32, torch.float16)
    )
    wanted = says(wide)
    assert not error(says(half), wanted) < 0.1
    guard(half)
    assert error(says(half), wanted) < 2.0**-8


def test_the_head_of_a_model_with_images() -> None:
    factors = {f"model.language_model.{name}.weight": 2.0**12 for name in ("norm", "embed_tokens")}
    model = planted(sound("gemma3 with images"), factors)
    wanted, half = says(model), model.half()
    assert not error(says(half), wanted) < 0.1
    guard(half)
    assert error(says(half), wanted) < 2.0**-8


def test_norms_that_somebody_keeps_in_float32() -> None:
    model = loud("gemma3", torch.float16)
    for module in model.modules():
        if type(module).__name__ == "Gemma3RMSNorm":
            module.float()
    guard(model)
    assert error(says(model), says(loud("gemma3", torch.float32))) < 2.0**-8


GAINS = {
    "last norm": {"norm": 2.0**18},
    "last norm and head": {"norm": 2.0**12, "embed_tokens": 2.0**12},
    "attention": {"layers.0.input_layernorm": 2.0**18},
    "values": {"layers.0.input_layernorm": 2.0**12, "layers.0.self_attn.v_proj": 2.0**12},
    "gated product": {"layers.1.pre_feedforward_layernorm": 2.0**18},
    "one half of it": {"layers.1.pre_feedforward_layernorm": 2.0**12, "layers.1.mlp.up_proj": 2.0**12},
}


@pytest.mark.parametrize("where", GAINS)
def test_gains_that_carry_a_norm_beyond_float16(where: str) -> None:
    """What reads such a norm takes float32, even where its own results fit; and gives float32 where they do not."""
    model = planted(sound("gemma3"), {f"model.{name}.weight": factor for name, factor in GAINS[where].items()})
    wanted, brain = says(model), says(copy.deepcopy(model).bfloat16())
    assert not error(says(model.half()), wanted) < 0.1
    guard(model)
    assert error(says(model), wanted) < 0.5 * error(brain, wanted)


@pytest.mark.parametrize(("weight", "fits"), [(8190.9, True), (8191.1, False), (-8192.9, True), (-8193.1, False)])
def test_a_norm_fits_by_its_weight_and_one(weight: float, fits: bool) -> None:  # noqa: FBT001
    """Sqrt(16) * |1 + w| is to be below 2**15."""
    norm = nn.RMSNorm(16)
    norm.weight.fill_(0.0)[3] = weight
    assert gemma3._fits(norm) is fits  # noqa: SLF001


def test_a_product_that_adds_up_all_channels() -> None:
    """|output| <= sqrt(channels) * ||row * gain||_2 is reached where all channels are the same: 65536 in a row here."""
    model = copy.deepcopy(sound("gemma3"))
    model.model.embed_tokens.weight.fill_(1.0)
    model.model.layers[0].input_layernorm.weight.fill_(0.0)
    for name in ("q_proj", "v_proj"):
        model.model.layers[0].self_attn.get_submodule(name).weight.zero_()[0] = 2.0**12
    wanted, half = says(model), model.half()
    assert not error(says(half), wanted) < 0.1
    guard(half)
    assert error(says(half), wanted) < 2.0**-8


@pytest.mark.parametrize("residual", [torch.float32, torch.bfloat16])
def test_the_residual_stream_has_the_dtype_that_was_asked_for(residual: torch.dtype) -> None:
    model = loud("gemma3", torch.float16)
    guard(model, residual)
    streams = model(input_ids=IDS, output_hidden_states=True).hidden_states[:-1]  # the last one is normalised
    assert {stream.dtype for stream in streams} == {residual}


class Quantised(nn.Linear):  # type: ignore[misc]  # torch counts as untyped
    """Stands for the layers of quantisers: bytes for weights, which it multiplies out in the dtype of its input."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.step = float(linear.weight.abs().max()) / 127
        self.weight = nn.Parameter((linear.weight.detach() / self.step).round().to(torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the quantisers do."""
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.step)


def test_quantised_layers_are_left_as_they_are() -> None:
    model = planted(sound("gemma3"), {"model.layers.0.post_attention_layernorm.weight": 2.0**17})
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, module in list(part.named_children()):
                if isinstance(module, nn.Linear):
                    setattr(part, name, Quantised(module))
    wanted = says(model)
    for module in model.modules():
        if not isinstance(module, Quantised):
            module.half()
    assert not error(says(model), wanted) < 0.1
    guard(model)
    assert not any(is_guarded(module) for module in model.modules() if isinstance(module, Quantised))
    for cached in (True, False):  # a cache hides that keys and values have two dtypes
        assert error(model(input_ids=IDS, use_cache=cached).logits, wanted) < 2.0**-7


def test_a_quantised_projection_of_gemma3n_is_left_as_it_is() -> None:
    text = copy.deepcopy(sound("gemma3n")).half().model.language_model
    text.per_layer_model_projection = Quantised(text.per_layer_model_projection)
    text.altup_projections[0] = Quantised(text.altup_projections[0])
    guard(text)
    assert not is_guarded(text.per_layer_model_projection)
    assert not is_guarded(text.altup_projections[0])
    assert is_guarded(text.altup_projections[1])


# What is refused


def refused(model: nn.Module, message: str, *residual: torch.dtype) -> None:
    """Whether it is, with that message, and the model left as it was."""
    with pytest.raises(UsageError, match=message):
        guard(model, *residual)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_model_in_which_nothing_can_be_guarded() -> None:
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )
    refused(
        transformers.LlamaForCausalLM(config), "LlamaForCausalLM: nothing in it can be guarded. What can is Gemma 3's"
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_that_have_no_values_yet(name: str) -> None:
    refused(skeleton(CONFIGS[name]), r"has no values here \(device meta\).*load all weights first")


def test_a_residual_stream_that_would_not_be_wider() -> None:
    refused(loud("gemma3", torch.float16), "residual=torch.float16: the stream may leave its range", torch.float16)
