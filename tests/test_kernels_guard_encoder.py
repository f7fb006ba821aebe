"""The guarded image encoder: float16 agrees with float32, forward and backward, and nothing else about it changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
from checkpoints import PUBLISHED
from guarded import PLANTED, Infinities, as_published, error, gradients, planted, tower
from tiny_models import ENCODER, features, pixels
from torch import nn
from torch.utils.checkpoint import checkpoint

from gemma_doctor.errors import UsageError
from gemma_doctor.kernels import guard, unguard
from gemma_doctor.kernels.guards import encoder_forwards as run
from gemma_doctor.kernels.guards.replacements import restore


@pytest.fixture(autouse=True)
def no_gradients() -> object:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("planting", PLANTED)
def test_guarded_float16_agrees_with_float32_better_than_bfloat16_does(planting: str) -> None:
    wanted = features(tower(planting, torch.float32))
    half = tower(planting, torch.float16)
    plain = error(features(half), wanted)
    guard(half)
    with Infinities() as infinities:
        guarded = error(features(half), wanted)
    assert infinities.seen == []
    assert guarded < 0.5 * error(features(tower(planting, torch.bfloat16)), wanted)
    if planting in {"published", "stem"}:
        assert not plain < 0.9


def test_maps_of_16_bits_lie_channels_last() -> None:
    for dtype, layout in ((torch.float16, torch.channels_last), (torch.float32, torch.contiguous_format)):
        model = tower("sound", dtype)
        guard(model)
        assert model.conv_stem(pixels().to(dtype)).is_contiguous(memory_format=layout)


def test_whatever_the_image() -> None:
    """Also one that nobody has divided by 255, or worse."""
    wide, image = tower("sound", torch.float32), pixels() * 60_000
    half = tower("sound", torch.float16)
    guard(half)
    with Infinities() as infinities:
        found = half.forward_features(image.half())
    assert infinities.seen == []
    brain = tower("sound", torch.bfloat16).forward_features(image.bfloat16())
    wanted = wide.forward_features(image)
    assert error(found, wanted) < 0.5 * error(brain, wanted)


@pytest.mark.parametrize("planting", ["published", "outputs"])
def test_in_float32_the_guard_changes_no_bit(planting: str) -> None:
    """Powers of two are all that it adds."""
    model = tower(planting, torch.float32)
    wanted = features(model)
    found = guard(model)
    assert max(replacement.exponent for replacement in found.replaced) > 4
    assert torch.equal(features(model), wanted)


def test_gradients_are_finite_and_those_of_float32() -> None:
    direction = torch.randn((1, 2048, 16, 16), generator=torch.Generator().manual_seed(3)) * 64
    both = planted(tower("published", torch.float32), PLANTED["outputs"])

    def learned(dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], list[str]]:
        model = copy.deepcopy(both).to(dtype)
        if dtype == torch.float16:
            guard(model)
        with torch.enable_grad(), Infinities() as infinities:
            (features(model).float() * direction).mean().backward()
        return gradients(model), infinities.seen

    (wanted, _), (found, infinite), (brain, _) = map(learned, (torch.float32, torch.float16, torch.bfloat16))
    assert infinite == []
    assert found.keys() == wanted.keys()
    whole = [torch.cat([grads[name].flatten().double() for name in wanted]) for grads in (found, brain, wanted)]
    assert error(whole[0], whole[2]) < 0.5 * error(whole[1], whole[2])


def test_the_published_magnitudes_forward_and_backward() -> None:
    """A maximum of 98 silences every position of plain float16: the norm squares what the convolution gives."""
    direction = torch.randn((1, 2048, 16, 16), generator=torch.Generator().manual_seed(3)) * 64

    def learned(dtype: torch.dtype, *, guarded: bool = False) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        model = as_published(dtype)
        if guarded:
            guard(model)
        with torch.enable_grad(), Infinities() as infinities:
            found = features(model)
            (found.float() * direction).mean().backward()
        slopes = torch.cat([value.flatten().double() for _, value in sorted(gradients(model).items())])
        return found.detach(), slopes, infinities.seen

    wanted, brain = learned(torch.float32), learned(torch.bfloat16)
    plain, found = learned(torch.float16), learned(torch.float16, guarded=True)
    assert plain[2] != []
    assert found[2] == []
    for number in range(2):
        assert not error(plain[number], wanted[number]) < 0.9
        assert error(found[number], wanted[number]) < 0.5 * error(brain[number], wanted[number])


@pytest.mark.parametrize("name", [name.removeprefix(ENCODER) for name in PUBLISHED])
def test_each_of_the_published_convolutions_needs_its_guard(name: str) -> None:
    """Without one guard of 282 the encoder is worse than in bfloat16."""
    model = planted(tower("sound", torch.float32), {name: 2.0**9})
    wanted, brain = features(model), features(copy.deepcopy(model).bfloat16())
    guard(model.half())
    allowed = 0.5 * error(brain, wanted)
    assert error(features(model), wanted) < allowed
    block = model.get_submodule(name.partition(".attn")[0].removesuffix(".conv.weight"))
    for module in block.modules():
        restore(module)
    assert not error(features(model), wanted) < 2 * allowed


def test_every_convolution_and_norm_is_guarded_and_reported() -> None:
    model = tower("published", torch.float16)
    found = guard(model)
    convs = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    norms = {name for name, module in model.named_modules() if "RmsNorm" in type(module).__name__}
    named = {replacement.name: replacement for replacement in found.replaced}
    assert len(convs) == 282
    assert convs | norms <= set(named)
    scaled = {name for name in convs if named[name].exponent}
    assert {"msfa.ffn.pw_proj.conv", "blocks.2.30.pw_exp.conv", "blocks.2.32.pw_exp.conv"} <= scaled
    assert len(scaled) < 10
    said = [line.strip() for line in str(found).splitlines()]
    assert f"{len(norms)}  norm of maps in float32" in said
    assert f"150  convolution before a norm ({len(scaled)} of them scaled down)" in said
    assert f"{len(convs) - 150}  projection of an attention" in said


def test_state_and_bits_come_back() -> None:
    model = tower("published", torch.float16)
    before, state = features(model), {name: value.clone() for name, value in model.state_dict().items()}
    guard(model)
    guard(model)
    assert {name: value.dtype for name, value in model.state_dict().items()} == dict.fromkeys(state, torch.float16)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not torch.equal(features(model), before)
    unguard(model)
    assert torch.equal(features(model), before)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_copy_is_guarded_by_itself() -> None:
    model = tower("published", torch.float16)
    guard(model)
    wanted, twin = features(model), copy.deepcopy(model)
    unguard(model)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(features(twin), wanted)


def test_a_forward_that_somebody_else_replaced_is_refused_and_nothing_stays() -> None:
    model = tower("sound", torch.float16)
    module = model.blocks[3][1]
    module.forward = lambda x: x
    with pytest.raises(UsageError, match=r"MobileAttention\.forward has been replaced already"):
        guard(model)
    del module.forward
    assert not any("forward" in module.__dict__ for module in model.modules())


# With what else is done to models


@pytest.fixture
def blocks() -> nn.Sequential:
    """The end of the encoder's second and the start of its third stage, guarded in float16; 16 channels in."""
    model = tower("outputs", torch.float16)
    guard(model)
    chosen = nn.Sequential(model.blocks[1][-1], *model.blocks[2][:2], *model.blocks[2][8:10])
    assert {type(block).__name__ for block in chosen} == {"UniversalInvertedResidual", "MobileAttention"}
    return chosen


def learned(blocks: nn.Module, run: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    """The result and every gradient."""
    blocks.zero_grad()
    channels = next(blocks.modules())[0].pw_exp.conv.in_channels
    x = torch.randn((1, channels, 16, 16), generator=torch.Generator().manual_seed(0)).half()
    with torch.enable_grad():
        result = run(x)
        result.float().square().mean().backward()
    return {"result": result.detach(), **gradients(blocks)}


def test_compiled(blocks: nn.Sequential) -> None:
    """Two of them, for a compiler takes its time: one of either kind."""
    blocks = blocks[3:]
    assert {type(block).__name__ for block in blocks} == {"UniversalInvertedResidual", "MobileAttention"}
    wanted = learned(blocks, blocks)
    found = learned(blocks, torch.compile(blocks, backend="aot_eager", fullgraph=True))
    assert found.keys() == wanted.keys()
    assert max(error(found[name], value) for name, value in wanted.items()) < 2.0**-6


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # inductor imports what torch itself deprecates
def test_compiled_by_inductor(blocks: nn.Sequential) -> None:
    """One block, for a compiler of C++ takes its time."""
    block = nn.Sequential(blocks[4])
    x = torch.randn((1, block[0].norm.weight.numel(), 8, 8), generator=torch.Generator().manual_seed(0))
    wanted = block(x.half())
    assert error(torch.compile(block, fullgraph=True)(x.half()), wanted) < 2.0**-6


@pytest.mark.parametrize(("heads", "side"), [(1, 4), (6, 5)])
def test_fused_attention_is_the_one_of_float64(heads: int, side: int) -> None:
    random = torch.Generator().manual_seed(heads)
    query = torch.randn((2, heads * 16, 6, 7), generator=random).half()
    key, value = (torch.randn((2, 16, side, side), generator=random).half() for _ in range(2))
    found = run._mixed_by_heads(heads, (query, key, value), 0.3, 0.0)  # noqa: SLF001
    assert found.shape == (2, heads * 16, 42)
    by_head = query.double().view(2, heads, 16, 42)
    shares = torch.einsum("bhdq,bdk->bhqk", by_head, key.double().flatten(2)).mul(0.3).softmax(-1)
    wanted = torch.einsum("bhqk,bdk->bhdq", shares, value.double().flatten(2)).reshape(2, heads * 16, 42)
    assert error(found, wanted) < 2.0**-9


@pytest.mark.parametrize(("compiling", "training"), [(True, True), (True, False), (False, True)])
def test_compiled_for_training_no_key_repeats_in_memory(
    monkeypatch: pytest.MonkeyPatch,
    compiling: bool,  # noqa: FBT001
    training: bool,  # noqa: FBT001
) -> None:
    """Torch's compiler takes the gradient of flash attention to lie as ``empty_like``; it lies as rows of all heads."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    rows = torch.randn((2, 5, 16)).half()
    with torch.set_grad_enabled(training):
        keys = run._for_each(3, rows)  # noqa: SLF001
    assert torch.equal(keys, rows.unsqueeze(1).repeat(1, 3, 1, 1))
    as_torch_gives_it = torch.empty_like(keys.transpose(1, 2)).transpose(1, 2).stride()
    assert (torch.empty_like(keys).stride() == as_torch_gives_it) is (compiling and training)
    assert (keys.untyped_storage().nbytes() == rows.nbytes) is not (compiling and training)


def test_cudnns_attention_is_as_it_was_after_an_error_and_after_threads_that_overlap() -> None:
    """The setting is the process's: whoever comes second finds it switched off, and may leave last."""
    for enabled in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(enabled)
        with pytest.raises(ZeroDivisionError), run._without_cudnn:  # noqa: SLF001
            _ = 1 / 0
        first, second = (ExitStack() for _ in range(2))
        first.enter_context(run._without_cudnn)  # noqa: SLF001
        second.enter_context(run._without_cudnn)  # noqa: SLF001
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        first.close()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        second.close()
        assert torch.backends.cuda.cudnn_sdp_enabled() is enabled
    torch.backends.cuda.enable_cudnn_sdp(enabled=True)


def test_checkpointed(blocks: nn.Sequential) -> None:
    wanted = learned(blocks, blocks)
    found = learned(blocks, lambda x: checkpoint(blocks, x, use_reentrant=False))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_under_autocast_with_float32_weights() -> None:
    model = tower("published", torch.float32)
    wanted = features(model)
    guard(model)
    with torch.autocast("cpu", torch.float16):
        found = model.forward_features(pixels())
    assert found.dtype == torch.float16
    assert error(found, wanted) < 0.03


def test_convolutions_that_peft_wraps_later_or_before() -> None:
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415  # seconds

    wanted = features(tower("published", torch.float32))
    names = ["blocks.2.9.attn.key.proj", "blocks.2.9.attn.query.proj", "blocks.2.9.attn.value.proj"]
    targets = [
        *names,
        "blocks.2.9.attn.output.proj",
        "blocks.2.30.pw_exp.conv",
        "blocks.0.0.conv_exp",
        "msfa.ffn.pw_proj.conv",
    ]
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=True)
    for order in ("guard first", "peft first"):
        model = tower("published", torch.float16)
        if order == "guard first":
            guard(model)
        inject_adapter_in_model(config, model)
        if order == "peft first":
            guard(model)
        assert "lora" in type(model.msfa.ffn.pw_proj.conv).__module__
        with Infinities() as infinities:
            assert error(features(model), wanted) < 0.03
        assert infinities.seen == []
