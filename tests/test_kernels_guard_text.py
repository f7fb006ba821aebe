"""The guarded text models: what leaves float16's range does no harm, forward and backward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from guarded import CONFIGS, LOUD, Infinities, error, gradients, loud, planted, sound
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import _question, answers
from torch import nn
from transformers import Gemma3nTextConfig, Gemma3nTextModel

from gemma_doctor.kernels import guard, unguard
from gemma_doctor.kernels.guards.products import exact_product, largest_row


@pytest.fixture(autouse=True)
def no_gradients() -> object:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", CONFIGS)
def test_guarded_float16_agrees_with_float32_better_than_bfloat16_does(name: str) -> None:
    wanted = answers(loud(name, torch.float32))
    half = loud(name, torch.float16)
    plain = answers(half)
    found = guard(half)
    with Infinities() as infinities:
        guarded = answers(half)
    brain = answers(loud(name, torch.bfloat16))
    assert [seen for seen in infinities.seen if "full" not in seen and "where" not in seen] == []
    assert not error(plain["logits"], wanted["logits"]) < 0.1
    assert len(found.replaced) > 30
    for key, value in wanted.items():
        assert error(guarded[key], value) < 0.6 * error(brain[key], value), key


@pytest.mark.parametrize("name", CONFIGS)
def test_in_float32_the_guard_changes_next_to_nothing(name: str) -> None:
    model = loud(name, torch.float32)
    wanted = answers(model)
    guard(model)
    assert all(error(value, wanted[key]) < 2.0**-18 for key, value in answers(model).items())


@pytest.mark.parametrize("residual", [torch.float32, torch.bfloat16])
def test_gradients_of_gemma3_are_finite_and_those_of_float32(residual: torch.dtype) -> None:
    ids = torch.arange(3, 19)[None]

    def learned(model: Any) -> tuple[torch.Tensor, list[str]]:  # noqa: ANN401
        model.train()
        with torch.enable_grad(), Infinities() as infinities:
            (model(input_ids=ids, labels=ids).loss * 2.0**10).backward()  # float16 training scales its losses
        seen = [name for name in infinities.seen if "full" not in name and "where" not in name]
        return torch.cat([value.flatten().double() for _, value in sorted(gradients(model).items())]), seen

    wanted, _ = learned(loud("gemma3", torch.float32))
    brain, _ = learned(loud("gemma3", torch.bfloat16))
    half = loud("gemma3", torch.float16)
    guard(half, residual)
    found, infinite = learned(half)
    assert infinite == []
    assert error(found, wanted) < error(brain, wanted)


@pytest.mark.parametrize("part", ["text", "audio"])
def test_gradients_of_gemma3n_are_finite_and_those_of_float32(part: str) -> None:
    """The embeddings' factor alone squares beyond float16 in AltUp; the audio tower's factors, in its convolutions."""
    factors = {
        name: factor
        for name, factor in LOUD["gemma3n"].items()
        if name.startswith("model.audio_tower.") == (part == "audio") and "vision" not in name
    }
    mother = planted(sound("gemma3n"), factors)
    given = _question(mother.config)
    ids = given["input_ids"][:, :8]
    frames = given["input_features"], given["input_features_mask"]

    def learned(dtype: torch.dtype, *, guarded: bool = False) -> tuple[torch.Tensor, list[str]]:
        model = copy.deepcopy(mother).to(dtype)
        if guarded:
            guard(model)
        with torch.enable_grad(), Infinities() as infinities:
            if part == "text":
                loss = model(input_ids=ids, labels=ids).loss * 2.0**8
            else:
                tower = model.get_submodule("model.audio_tower")
                loss = tower(frames[0].to(dtype), ~frames[1])[0].float().square().mean() * 2.0**4
            loss.backward()
        seen = [name for name in infinities.seen if "full" not in name and "where" not in name]
        return torch.cat([value.flatten().double() for _, value in sorted(gradients(model).items())]), seen

    (wanted, _), (brain, _) = learned(torch.float32), learned(torch.bfloat16)
    found, infinite = learned(torch.float16, guarded=True)
    assert infinite == []
    assert error(found, wanted) < error(brain, wanted)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_gemma3n_of_few_layers_whose_streams_square_beyond_float16(layers: int) -> None:
    """Before the first layer and after the last one, which may be the same."""
    few = {"num_hidden_layers": layers, "num_kv_shared_layers": 0, "layer_types": ["full_attention"] * layers}
    torch.manual_seed(0)
    wide = Gemma3nTextModel(Gemma3nTextConfig(**{**CONFIGS["gemma3n"]["text_config"], **few})).eval()
    wide.embed_tokens.weight *= 2.0**13
    half, ids = copy.deepcopy(wide).half(), torch.arange(3, 19)[None]
    wanted = wide(input_ids=ids).last_hidden_state
    assert not error(half(input_ids=ids).last_hidden_state, wanted) < 0.1
    guard(half)
    assert error(half(input_ids=ids).last_hidden_state, wanted) < 2.0**-8


def test_state_and_answers_come_back() -> None:
    model = copy.deepcopy(sound("gemma3n")).half()
    before, keys = answers(model), model.state_dict().keys()
    guard(model)
    assert model.state_dict().keys() == keys
    unguard(model)
    assert all(torch.equal(value, before[key]) for key, value in answers(model).items())
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_generation_with_a_cache() -> None:
    wanted = loud("gemma3", torch.float32).generate(torch.arange(3, 11)[None], max_new_tokens=6, do_sample=False)
    half = loud("gemma3", torch.float16)
    guard(half)
    assert torch.equal(half.generate(torch.arange(3, 11)[None], max_new_tokens=6, do_sample=False), wanted)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT reads it
def test_with_lora_checkpointing_and_compilation() -> None:
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415  # seconds

    ids = torch.arange(3, 19)[None]
    half = loud("gemma3", torch.float16)
    guard(half)
    model = get_peft_model(half, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).train()

    def learned(run: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
        model.zero_grad()
        with torch.enable_grad():
            (run(input_ids=ids, labels=ids, use_cache=False).loss * 2.0**10).backward()
        return gradients(model)

    wanted = learned(model)
    assert wanted
    assert all("lora" in name and bool(value.isfinite().all()) for name, value in wanted.items())
    compiled = learned(torch.compile(model, backend="aot_eager"))
    half.activation_checkpointing_enable({"use_reentrant": False})
    again = learned(model)
    assert all(torch.equal(again[name], value) for name, value in wanted.items())
    assert compiled.keys() == wanted.keys()
    assert error(*(torch.cat([part[name].flatten() for name in wanted]) for part in (compiled, wanted))) < 2.0**-8


def test_under_autocast_with_float32_weights() -> None:
    model = loud("gemma3", torch.float32)
    wanted = answers(model)
    guard(model)
    with torch.autocast("cpu", torch.float16):
        found = answers(model)
    assert error(found["logits"], wanted["logits"]) < 2.0**-6


# Matrix products


@given(st.integers(-30, 30), st.integers(-8, 10), st.integers(0, 99))
def test_products_of_any_magnitude(x_exponent: int, weight_exponent: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    linear = nn.Linear(24, 16, bias=seed % 2 == 0)
    linear.weight.data = torch.randn((16, 24), generator=random) * 2.0**weight_exponent
    half = copy.deepcopy(linear).half()
    x = torch.randn((2, 5, 24), generator=random) * 2.0**x_exponent
    x[0, 1] *= 2.0**12
    found = exact_product(half, x, largest_row(half))
    wanted = copy.deepcopy(half).double()(x.double())
    assert found.dtype == torch.float32
    scale = x.double().abs() @ half.weight.double().abs().T  # rounding is relative to the sum of magnitudes
    assert bool(((found - wanted).abs() <= scale * 2.0**-9 + 1e-3).all())


def test_a_position_is_scaled_by_itself_and_doubles_stay_doubles() -> None:
    linear = nn.Linear(8, 3).half()
    x = torch.randn((2, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1] *= 2.0**40
    found, wanted = exact_product(linear, x.float(), largest_row(linear)), copy.deepcopy(linear).double()(x)
    assert [error(found[row], wanted[row]) < 2.0**-9 for row in range(2)] == [True, True]
    double = exact_product(copy.deepcopy(linear).double(), x, largest_row(linear))
    assert double.dtype == torch.float64
    assert error(double, wanted) < 2.0**-45


def test_products_pass_on_nan_where_it_stands() -> None:
    linear = nn.Linear(4, 3).half()
    x = torch.ones((3, 4))
    x[1, 2] = float("nan")
    assert exact_product(linear, x, largest_row(linear)).isnan().any(1).tolist() == [False, True, False]
    assert bool(exact_product(linear, torch.zeros((1, 4)), largest_row(linear)).isfinite().all())
