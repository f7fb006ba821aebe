"""Every block that timm builds of the encoder's parts computes the same when it is guarded, whatever comes in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torchvision_operators  # noqa: F401  # before timm
from guarded import Infinities, error, gradients, tower
from timm.layers import BatchNormAct2d, BlurPool2d, ConvNormAct, DropPath, GELUTanh, RmsNormAct2d, SqueezeExcite
from timm.models._efficientnet_blocks import EdgeResidual, MobileAttention, UniversalInvertedResidual
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from gemma_doctor.kernels import guard, unguard
from gemma_doctor.kernels.guards import encoder
from gemma_doctor.kernels.guards.convolutions import RowScale, convolve, in_float32
from gemma_doctor.kernels.guards.planning import Site
from gemma_doctor.kernels.guards.replacements import is_guarded
from gemma_doctor.kernels.guards.scaling import ROOM, exponents, row_bounds
from gemma_doctor.tensors import FP16_MAX

CHANNELS = 16
conv = partial(ConvNormAct, CHANNELS, CHANNELS, 3, norm_layer=RmsNormAct2d, act_layer=GELUTanh)
edge = partial(EdgeResidual, CHANNELS, CHANNELS, exp_ratio=2, norm_layer=RmsNormAct2d, act_layer=GELUTanh)
inverted = partial(
    UniversalInvertedResidual, CHANNELS, CHANNELS, exp_ratio=2, norm_layer=RmsNormAct2d, act_layer=GELUTanh
)
attention = partial(
    MobileAttention,
    CHANNELS,
    CHANNELS,
    num_heads=2,
    key_dim=8,
    value_dim=8,
    norm_layer=RmsNormAct2d,
    act_layer=GELUTanh,
    use_multi_query=True,
    layer_scale_init_value=1.0,
)
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "convolution": conv,
    "strides, groups, dilation, bias": partial(conv, stride=2, groups=4, dilation=2, bias=True),
    "padded by the size of what comes": partial(conv, stride=2, dilation=2, padding="same"),
    "exact GELU": partial(conv, act_layer=nn.GELU),
    "ReLU": partial(conv, act_layer=nn.ReLU),
    "no activation": partial(conv, apply_act=False),
    "dropout": partial(conv, drop_layer=nn.Dropout2d),
    "blurred": partial(conv, stride=2, aa_layer=BlurPool2d),
    "edge residual": edge,
    "edge residual, squeezed and dropped": partial(edge, se_layer=SqueezeExcite, drop_path_rate=0.5),
    "edge residual, no shortcut": partial(edge, noskip=True),
    "inverted residual": partial(inverted, dw_kernel_size_start=3, dw_kernel_size_end=3, drop_path_rate=0.5),
    "attention": attention,
    "attention, smaller keys": partial(attention, kv_stride=2, query_strides=(2, 2), noskip=True),
    "attention with positions and dropped": partial(attention, use_cpe=True, drop_path_rate=0.5, use_bias=True),
    "attention without layer scale": partial(attention, layer_scale_init_value=None),
}


def made(name: str, factor: float = 1.0) -> nn.Module:
    """The block, always the same, its convolutions multiplied."""
    torch.manual_seed(0)
    block = BLOCKS[name]()
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.weight *= factor
            elif isinstance(getattr(module, "weight", None), nn.Parameter):
                module.weight += torch.randn_like(module.weight) / 4
    return block


def image(peak: float) -> torch.Tensor:
    return torch.randn((2, CHANNELS, 8, 8), generator=torch.Generator().manual_seed(1)) * peak


def run(block: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Its result in training, with the same chances each time, and every gradient."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        torch.manual_seed(2)
        result = block(x)
        result.float().square().mean().backward()
    return result.detach(), {"x": x.grad, **gradients(block)}


@pytest.mark.parametrize("name", BLOCKS)
def test_guarded_in_float32_it_computes_the_same(name: str) -> None:
    """Weights so large that every convolution is scaled: for all that is known of a block alone, anything comes in."""
    plain, guarded = (made(name, 2.0**6).train() for _ in range(2))
    found = guard(guarded)
    assert any(replacement.exponent for replacement in found.replaced)
    (wanted, slopes), (same, again) = run(plain, image(100.0)), run(guarded, image(100.0))
    assert error(same, wanted) < 2.0**-18
    assert again.keys() == slopes.keys()
    assert all(error(again[name], slope) < 2.0**-14 for name, slope in slopes.items() if float(slope.abs().max()) > 0)


@pytest.mark.parametrize("name", [name for name in BLOCKS if "squeezed" not in name and "positions" not in name])
def test_guarded_in_float16_it_holds_whatever_comes_in(name: str) -> None:
    """Not so squeezing and positions: their convolutions have no norm behind them, and MobileNetV5 has none of them."""
    block, x = made(name, 2.0**6).eval(), image(5_000.0).half()
    if isinstance(block, MobileAttention):
        block.attn.key.proj.weight.data *= 2.0**-12  # a softmax of larger products is one or zero, and flips
    half = copy.deepcopy(block).half()
    guard(half)
    with torch.no_grad():
        wanted = block(x.float())
        with Infinities() as infinities:
            found = half(x)
        brain = copy.deepcopy(block).bfloat16()(x.bfloat16())
    assert infinities.seen == []
    assert error(found, wanted) < 0.5 * error(brain, wanted)


def test_a_norm_lets_its_gain_through() -> None:
    """The second convolution of a block is scaled by what the first one's norm may give, not by what came in."""
    block = partial(edge, noskip=True)().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(2.0**8 if parameter.dim() == 1 else 2.0**5)
        x = torch.ones((1, CHANNELS, 8, 8))
        wanted, half = block(x), block.half()
        guard(half)
        assert error(half(x.half()), wanted) < 2.0**-8


KNOWN = ["edge residual", "edge residual, no shortcut", "attention", "attention, smaller keys", "inverted residual"]


def within_its_bound(block: Any) -> bool:  # noqa: ANN401  # a class of timm
    """Whether no result of inputs of at most 1000 is larger than what the next block goes by."""
    peak = 1000.0
    block.drop_path = nn.Identity()
    plan: Any = encoder._BLOCKS[type(block).__name__]  # noqa: SLF001
    bound = plan(Site(block, torch.float32), block, torch.full((CHANNELS,), peak, dtype=torch.float64))
    unguard(block)
    with torch.no_grad():
        largest = block(image(1.0).sign() * peak).abs().amax((0, 2, 3))
    return bool((largest <= bound).all())


@pytest.mark.parametrize("name", KNOWN)
def test_no_result_is_larger_than_the_bound_that_the_next_block_goes_by(name: str) -> None:
    block: Any = made(name).eval()
    if not name.startswith("edge"):
        block.layer_scale.gamma.data = torch.randn(CHANNELS, generator=torch.Generator().manual_seed(3)) * 100
    assert within_its_bound(block)


def test_each_head_averages_all_values() -> None:
    """The first value is large, and only the second head's average of it is read."""
    block: Any = made("attention").eval()
    block.attn.value.proj.weight.data[0] *= 2.0**12
    block.attn.output.proj.weight.data.zero_()[:, 8] = 1.0
    assert within_its_bound(block)


def test_shrunk_values_are_as_large_as_their_own_norm_lets_them() -> None:
    block: Any = made("attention, smaller keys").eval()
    block.attn.value.norm.weight.data *= 2.0**12
    assert within_its_bound(block)


def test_an_output_is_scaled_by_what_scaled_values_may_be() -> None:
    """And not by what they were, which would cost small outputs their bits."""
    block: Any = made("attention").eval()
    block.attn.value.proj.weight.data *= 2.0**16
    found = {replacement.name: replacement.exponent for replacement in guard(block).replaced}
    needed = exponents(row_bounds(block.attn.output.proj.weight, ROOM))
    assert found["attn.value.proj"] > 0
    assert 0 < found["attn.output.proj"] <= int(needed.max())


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_an_attention_of_which_peft_wraps_one_projection(name: str) -> None:
    """It gives float32 then, and the others float16."""
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415  # seconds

    block, x = made("attention").eval().half(), image(1.0).half()
    guard(block)
    with torch.no_grad():
        wanted = block(x)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=[f"attn.{name}.proj"]), block)
        assert error(block(x), wanted) < 2.0**-8


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_an_attention_drops_products_in_training_alone(dtype: torch.dtype) -> None:
    block = partial(attention, attn_drop=0.5)().to(dtype)
    guard(block)
    whole = functional.scaled_dot_product_attention
    with torch.no_grad(), mock.patch.object(functional, whole.__name__, side_effect=whole) as mixed:
        block.train()(image(1.0).to(dtype))
        block.eval()(image(1.0).to(dtype))
    assert [call.kwargs["dropout_p"] for call in mixed.call_args_list] == [0.5, 0.0]


def test_a_norm_that_somebody_wraps_later_is_called_as_a_module() -> None:
    block, x = made("convolution", 2.0**6).half().eval(), image(5_000.0).half()
    guard(block)
    with torch.no_grad():
        wanted = block(x)
        block.bn = nn.Sequential(block.bn)
        assert error(block(x), wanted) < 2.0**-9


def test_blocks_with_other_norms_are_left_alone() -> None:
    plain = partial(edge, norm_layer=BatchNormAct2d)()
    both = nn.Sequential(edge(), plain)
    guard(both)
    assert not any(is_guarded(module) for module in plain.modules())


@pytest.mark.parametrize("k", [0, 3, 24, 25, 30])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_scaled_weight_is_the_weight_times_a_power_of_two(k: int, dtype: torch.dtype) -> None:
    """Also where float16 has no such factor. The scale was made for another dtype, and no wider copy is made of it."""
    weight = torch.randn((8, 4, 1, 1), generator=torch.Generator().manual_seed(k)) * 2.0**12
    for together in (False, True):
        scale = RowScale(2.0 ** (15 + torch.tensor([k] * 7 + [0])).double(), weight, together=together)
        assert scale.largest == k
        factors = 2.0 ** -torch.tensor([k] * 7 + [k * together]).double().view(-1, 1, 1, 1)
        with Dtypes() as dtypes:
            scale.scaled(weight.to(dtype))
        assert torch.equal(scale.scaled(weight.to(dtype)), (weight.to(dtype).double() * factors).to(dtype))
        assert k > 24 or dtypes.seen <= {dtype}


def test_small_weights_of_a_scaled_row_lose_at_most_half_of_float16s_smallest_step() -> None:
    weight = (torch.randn((1, 4096, 1, 1), generator=torch.Generator().manual_seed(0)) * 2.0**-12).half()
    scale = RowScale(torch.tensor([2.0**20]), weight)
    lost = (scale.scaled(weight).double() - weight.double() * 2.0**-5).abs()
    assert scale.largest == 5
    assert 0 < float(lost.max()) <= 2.0**-25


class Dtypes(TorchDispatchMode):  # type: ignore[misc]  # torch counts as untyped
    """Those of results as large as a weight while it lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        result = func(*args, **(kwargs or {}))
        if result.numel() > 8:
            self.seen.add(result.dtype)
        return result


def test_factors_follow_the_weights_to_another_device() -> None:
    """As tensors that training may use, though it be inference that moves them."""
    weight, meta = torch.ones((2, 1, 1, 1)).half(), torch.device("meta")
    scale = RowScale(torch.tensor([2.0**20, 1.0]), weight)
    with torch.inference_mode():
        factor = scale.factor(meta)
        assert scale.scaled(weight.to(meta)).device == meta
    assert factor is not None
    assert factor.device == meta
    assert not factor.is_inference()
    assert RowScale(torch.tensor([2.0**15, 1.0]), weight).factor(weight.device) is None


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_a_convolution_in_float32_stays_there_under_autocast(kind: type[nn.Conv1d | nn.Conv2d]) -> None:
    layer = kind(1, 2, 1).half()
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        layer.weight.fill_(2.0)
        layer.bias.copy_(torch.tensor([1.0, 0.5]))
        found = in_float32(layer, torch.full((1, *layer.weight.shape[1:]), 60_000.0, dtype=torch.float16))
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == [120_001.0, 120_000.5]


def test_a_bias_is_scaled_with_its_row() -> None:
    layer = nn.Conv2d(1, 2, 1).half()
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.copy_(torch.tensor([61_440.0, 0.0]))
        scale = RowScale(row_bounds(layer.weight, 1024.0, layer.bias), layer.weight)
        found = convolve(layer, torch.full((1, 1, 1, 1), 1024.0, dtype=torch.float16), scale)
    assert found.flatten().tolist() == [31_232.0, 1024.0]


def test_a_bound_does_not_outlive_what_makes_it_unknown() -> None:
    """Training drops paths and divides what is kept by their share, and nobody knows what a strange block does."""
    names = []
    for change in (None, DropPath(0.5), nn.Identity()):
        model = tower("sound", torch.float16)
        if isinstance(change, DropPath):
            model.blocks[1][0].drop_path = change
        elif change is not None:
            model.blocks[1][0] = nn.Sequential(model.blocks[1][0])
        scaled = {replacement.name for replacement in guard(model).replaced if replacement.exponent}
        names.append({name for name in scaled if name.startswith("blocks.1.1")})
    sound, dropped, strange = names
    assert not sound
    assert dropped
    assert dropped == strange


def test_a_row_bound_is_no_larger_than_what_float16_puts_in() -> None:
    weight = torch.ones((1, 2, 1, 1))
    assert row_bounds(weight, torch.tensor([1e9, 1.0])).tolist() == [FP16_MAX + 1.0]
    assert row_bounds(weight, 1e9).tolist() == [2 * FP16_MAX]
