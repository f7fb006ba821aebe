"""Norms equal float64 on any input, and so do their gradients; the fused ones, interpreted, equal the plain ones."""

from __future__ import annotations

import math
import runpy
from itertools import product
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from guarded import Infinities
from hypothesis import given
from hypothesis import strategies as st
from native_recorder import compiled_recorder
from torch import nn

from gemma_doctor.kernels import devices
from gemma_doctor.kernels.devices import runs_triton
from gemma_doctor.kernels.guards import norms, norms_fused, norms_tiles, norms_torch
from gemma_doctor.kernels.guards.norms import Form, rms_norm
from gemma_doctor.kernels.guards.norms_torch import Operands
from gemma_doctor.kernels.guards.planning import gain_bound
from gemma_doctor.kernels.guards.scaling import ROOM, exponents, power_of_two, row_bounds
from gemma_doctor.verify.native import NativeTrace
from gemma_doctor.verify.places import Places

interpreted = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what the interpreter's NumPy says of NaN

HALF = 2.0**-11
"""Half a unit in the last place of float16, relative."""


@pytest.fixture(autouse=True)
def gradients() -> object:
    """Other modules switch them off for good."""
    with torch.enable_grad():
        yield


def reference(x: torch.Tensor, weight: torch.Tensor | None, form: Form, scale: torch.Tensor | None) -> torch.Tensor:
    """The same in float64, spelled out."""
    last = x.double().movedim(form.dim, -1)
    values = last if scale is None else last * scale.double()
    y = values / (values.square().mean(-1, keepdim=True) + form.eps).sqrt()
    if weight is not None:
        y = y * (weight.double() + form.offset)
    if form.gelu:
        y = y * 0.5 * (1 + (math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)).tanh())
    return y.movedim(-1, form.dim)


def maps(peak: float, seed: int = 0, channels: int = 24) -> torch.Tensor:
    """Random float16 maps with a largest magnitude of about that; shape (2, channels, 3, 5)."""
    x = torch.randn((2, channels, 3, 5), generator=torch.Generator().manual_seed(seed))
    return (x * (peak / float(x.abs().max()))).half()


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal but for one rounding to float16, and what float32 loses on the way (in GELU, to cancellation)."""
    error = (found.double() - wanted).abs()
    assert bool((error <= wanted.abs() * HALF * 1.05 + 2.0**-21).all())


@pytest.mark.parametrize("peak", [65504.0, 300.0, 1.0, 2.0**-10, 2.0**-16, 2.0**-24])
@pytest.mark.parametrize("gelu", [False, True])
def test_float16_maps_of_any_magnitude(peak: float, gelu: bool) -> None:  # noqa: FBT001
    x, form = maps(peak), Form(1e-6, 1, torch.float16, gelu=gelu)
    weight = torch.randn(24, generator=torch.Generator().manual_seed(1)).half()
    close(rms_norm(x, weight, form), reference(x, weight, form, None))


def test_one_channel_beyond_the_window_silences_nothing() -> None:
    """Timm squares in float16: 256 squared is infinite there, and that position's result is 0."""
    x = maps(1.0)
    x[0, 3, 1, 2] = 256.0
    form = Form(1e-6, 1, torch.float16)
    y = rms_norm(x, None, form)
    assert bool((y[0, :, 1, 2] != 0).any())
    close(y, reference(x, None, form, None))


def test_scaled_channels_count_as_what_they_were() -> None:
    """A producer that divided each channel by its own power of two is made up for exactly."""
    x = maps(2.0**-3)
    scale = 2.0 ** torch.arange(24).float()
    form = Form(1e-6, 1, torch.float16)
    close(rms_norm(x, None, form, scale), reference(x, None, form, scale))
    wide = Form(1e-6, 1, torch.float32)
    scaled = rms_norm(x.float() * scale.view(-1, 1, 1), None, wide)
    torch.testing.assert_close(rms_norm(x, None, wide, scale), scaled, rtol=2.0**-22, atol=0)  # the order of a sum


@pytest.mark.parametrize("special", [math.nan, math.inf])
def test_what_is_not_finite_shows_at_its_position_only(special: float) -> None:
    x = maps(1.0)
    clean = rms_norm(x, None, Form(1e-6, 1, torch.float16))
    x[1, 0, 2, 4] = special
    y = rms_norm(x, None, Form(1e-6, 1, torch.float16))
    assert bool(y[1, 0, 2, 4].isnan())
    y[1, :, 2, 4] = clean[1, :, 2, 4]
    assert torch.equal(y, clean)


@pytest.mark.parametrize(("gelu", "offset", "dim"), list(product([False, True], [0.0, 1.0], [1, -1])))
def test_gradients_in_float64(gelu: bool, offset: float, dim: int) -> None:  # noqa: FBT001
    random = torch.Generator().manual_seed(0)
    x = torch.randn((1, 5, 2, 5), generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, generator=random, dtype=torch.float64, requires_grad=True)
    scale = 2.0 ** torch.tensor([0.0, 3, 1, 0, 2])
    form = Form(1e-2, dim, torch.float64, offset=offset, gelu=gelu)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, form, scale), (x, weight))
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, None, form), (x,))


@pytest.mark.parametrize("peak", [65504.0, 300.0, 2.0**-10])
def test_gradients_in_float16_are_those_of_float64(peak: float) -> None:
    x = maps(peak).requires_grad_()
    weight = torch.ones(24, dtype=torch.float16, requires_grad=True)
    form = Form(1e-6, 1, torch.float16, gelu=True)
    grad = maps(1.0, seed=2)
    found = torch.autograd.grad(rms_norm(x, weight, form), (x, weight), grad)
    wide = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    wanted = torch.autograd.grad(reference(wide[0], wide[1], form, None), wide, grad.double())
    for mine, theirs in zip(found, wanted, strict=True):
        rounding = theirs.abs() * HALF + 2.0**-25
        assert float((mine.double() - theirs).norm()) < 1.05 * float(rounding.norm())


def test_where_nothing_asks_for_gradients_none_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = maps(1.0), torch.ones(24, dtype=torch.float16)
    form = Form(1e-6, 1, torch.float16)
    plain = rms_norm(x, weight, form)
    assert plain.grad_fn is None
    assert torch.equal(rms_norm(x, weight.requires_grad_(), form), plain)
    assert rms_norm(x, weight, form).requires_grad
    monkeypatch.setattr(norms._RmsNorm, "apply", lambda *_: pytest.fail("prepared"))  # noqa: SLF001
    with torch.no_grad():
        assert torch.equal(rms_norm(x, weight, form), plain)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_gradient_of_a_frozen_weight_is_not_computed(frozen: bool) -> None:  # noqa: FBT001
    x, weight = maps(1.0).requires_grad_(), torch.ones(24, dtype=torch.float16, requires_grad=not frozen)
    with mock.patch.object(norms_torch, "_of_weight", wraps=norms_torch._of_weight) as computed:  # noqa: SLF001
        rms_norm(x, weight, Form(1e-6, 1, torch.float16)).sum().backward()
    assert computed.called is not frozen


@pytest.mark.parametrize("peak", [65504.0, 1.0, 2.0**-10])
@pytest.mark.parametrize("gelu", [False, True])
def test_what_a_compiler_is_given_is_the_same_norm(peak: float, gelu: bool) -> None:  # noqa: FBT001
    x, form = maps(peak), Form(1e-6, 1, torch.float16, gelu=gelu)
    weight = torch.randn(24, generator=torch.Generator().manual_seed(1)).half()
    for scale in (None, 2.0 ** torch.arange(24).float()):
        close(norms_torch.differentiable(Operands(x, weight, scale), form), reference(x, weight, form, scale))


def test_nothing_gives_nothing() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.empty((0, 24, 3, 5), dtype=torch.float16).to(memory_format=layout)
        form = Form(1e-6, 1, torch.float16)
        assert not norms_fused.fits(x, form)
        assert rms_norm(x, None, form).shape == x.shape


@pytest.mark.parametrize(("capability", "fused"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_get_what_they_can_run(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], *, fused: bool
) -> None:
    """A V100 and a T4 plain torch, and so does what the kernels cannot read."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(norms, "runs_triton", runs_triton.__wrapped__)
    found = norms._fused.__wrapped__(torch.device("cuda", 0))  # noqa: SLF001
    assert found is (norms_fused if fused else None)
    monkeypatch.setattr(norms, "_fused", lambda _: found)
    x, form = maps(1.0), Form(1e-6, 1, torch.float16)
    assert norms._way(x, form) is (norms_fused if fused else norms_torch)  # noqa: SLF001
    assert norms._way(x[:, ::2], form) is norms_torch  # noqa: SLF001


def test_a_second_derivative_is_refused() -> None:
    x = maps(1.0).requires_grad_()
    y = rms_norm(x, None, Form(1e-6, 1, torch.float16))
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# The fused kernels


CASES = [
    (dtype, layout, weighted, scaled, gelu)
    for dtype in (torch.float16, torch.bfloat16, torch.float32)
    for layout, weighted, scaled, gelu in [
        ("maps", True, True, True),
        ("channels last", True, True, True),
        ("rows", True, False, False),
        ("maps", False, True, False),
        ("rows", False, False, True),
    ]
]


@interpreted
@pytest.mark.parametrize(("dtype", "layout", "weighted", "scaled", "gelu"), CASES)
def test_the_fused_kernels_equal_the_plain_ones(
    dtype: torch.dtype,
    layout: str,
    weighted: bool,  # noqa: FBT001
    scaled: bool,  # noqa: FBT001
    gelu: bool,  # noqa: FBT001
) -> None:
    x = (maps(100.0, channels=13) if layout != "rows" else maps(100.0, channels=4)).to(dtype)
    if layout == "channels last":
        x = x.to(memory_format=torch.channels_last)
    dim = -1 if layout == "rows" else 1
    channels = x.shape[dim]
    weight = torch.randn(channels).to(dtype) if weighted else None
    scale = 2.0 ** torch.randint(0, 5, (channels,)).float() if scaled else None
    form, operands = Form(1e-6, dim, dtype, offset=1.0, gelu=gelu), Operands(x, weight, scale)
    assert norms_fused.fits(x, form)
    tolerance = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float32: 2.0**-18}[dtype]
    (mine, inverse), (theirs, same) = norms_fused.forward(operands, form), norms_torch.forward(operands, form)
    assert mine.stride() == theirs.stride()
    assert torch.equal(norms_fused.normalise(operands, form), mine)
    torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=1e-6)
    grad = torch.randn_like(mine)
    found = norms_fused.backward(grad, operands, inverse, form, frozen=weight is None)
    wanted = norms_torch.backward(grad, operands, same, form, frozen=weight is None)
    torch.testing.assert_close(found[0], wanted[0], rtol=tolerance, atol=1e-5)
    if weighted:
        torch.testing.assert_close(found[1], wanted[1], rtol=4 * tolerance, atol=1e-3)
        assert norms_fused.backward(grad, operands, inverse, form, frozen=True)[1] is None


@interpreted
@pytest.mark.parametrize(("dtype", "out"), [(torch.float32, torch.float16), (torch.float16, torch.float32)])
def test_the_fused_kernels_give_another_dtype_than_they_read(dtype: torch.dtype, out: torch.dtype) -> None:
    """As between a float32 residual stream and float16 products; a value that float16 does not hold counts in full."""
    x = maps(100.0).to(dtype)
    if dtype == torch.float32:
        x[0, 3, 1, 2] = 70_000.0
    weight, form = torch.linspace(-2, 2, 24).half(), Form(1e-6, 1, out, offset=1.0)
    found = norms_fused.normalise(Operands(x, weight, None), form)
    assert found.dtype == out
    torch.testing.assert_close(
        found.double(), reference(x, weight, form, None), rtol=2.0**-11 if out == torch.float16 else 2.0**-18, atol=1e-6
    )


@interpreted
@pytest.mark.parametrize("peak", [65504.0, 300.0, 2.0**-24, math.nan, math.inf])
@pytest.mark.parametrize(
    ("channels", "layout"),
    [(24, torch.contiguous_format), (24, torch.channels_last), (72, torch.contiguous_format)],
    ids=["maps", "rows", "shared"],
)
def test_the_fused_kernels_at_the_ends_of_float16(
    monkeypatch: pytest.MonkeyPatch, peak: float, channels: int, layout: torch.memory_format
) -> None:
    """Forward and backward: one channel there, and one whole position."""
    if channels == 72:
        how = norms_tiles.Split(8, 12, 2)
        shared = norms_tiles.split((2, channels, 15), how, how)
        monkeypatch.setattr(norms_fused, "plan", lambda *_: shared)
    x = maps(1.0, channels=channels)
    x[0, 5, 1, 1] = peak
    x[1, :, 2, 3] = peak
    grad = maps(4.0, seed=2, channels=channels).to(memory_format=layout)
    form = Form(1e-6, 1, torch.float16, gelu=True)
    weight = torch.linspace(-2, 2, channels).half()
    operands = Operands(x.to(memory_format=layout), weight, None)
    (mine, inverse), (theirs, same) = norms_fused.forward(operands, form), norms_torch.forward(operands, form)
    torch.testing.assert_close(mine, theirs, rtol=2.0**-10, atol=2.0**-20, equal_nan=True)
    found = norms_fused.backward(grad, operands, inverse, form, frozen=False)
    wanted = norms_torch.backward(grad, operands, same, form, frozen=False)
    for gradient, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=2.0**-8, atol=2.0**-10, equal_nan=True)
    if math.isfinite(peak):
        close(mine, reference(operands.x, weight, form, None))


@interpreted
@pytest.mark.parametrize(("channels", "programs", "shares"), [(144, 20, 5), (144, 4, 1), (96, 6, 2), (33, 8, 2)])
def test_however_the_channels_are_shared(channels: int, programs: int, shares: int) -> None:
    """The last share may be smaller, and the last block of positions too."""
    x, grad = (maps(10.0, seed, channels) for seed in (0, 1))
    weight = torch.linspace(-2, 2, channels).half()
    scale = 2.0 ** (torch.arange(channels) % 5).float()
    form, operands = Form(1e-6, 1, torch.float16, gelu=True), Operands(x, weight, scale)
    how = norms_tiles.Split(8, programs, 1)
    plan = norms_tiles.split((2, channels, 15), how, how)
    assert plan.shares == shares
    with mock.patch.object(norms_fused, "plan", return_value=plan):
        mine, inverse = norms_fused.forward(operands, form)
        found = norms_fused.backward(grad, operands, inverse, form, frozen=False)
    theirs, same = norms_torch.forward(operands, form)
    wanted = norms_torch.backward(grad, operands, same, form, frozen=False)
    torch.testing.assert_close(mine, theirs, rtol=2.0**-10, atol=1e-6)
    for gradient, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=2.0**-8, atol=2.0**-10)


def test_the_fused_kernels_refuse_what_they_cannot_read() -> None:
    form = Form(1e-6, 1, torch.float16)
    x = maps(1.0)
    assert norms_fused.fits(x.as_strided((1, 24, 3, 5), (7, 15, 5, 1)), form)  # the step of one item means nothing
    assert not norms_fused.fits(x[:, ::2], form)
    assert not norms_fused.fits(x.double(), form)
    assert not norms_fused.fits(torch.empty((1, 8193, 1, 1), dtype=torch.float16), form)
    with pytest.raises(ValueError, match="check fits"):
        norms_fused.forward(Operands(x[:, ::2], None, None), form)


@interpreted
def test_what_the_fused_kernels_write_is_seen_below_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "_way", lambda *_: norms_fused)
    x = maps(1.0).requires_grad_()
    weight = torch.full((24,), 65504.0, dtype=torch.float16, requires_grad=True)
    with Infinities() as infinities:
        y = rms_norm(x, weight, Form(1e-6, 1, torch.float16, offset=65504.0))
        torch.autograd.grad(y, (x, weight), torch.full_like(y, 65504.0))
    assert "gemma_doctor.rms_norm.default" in infinities.seen
    assert "gemma_doctor.rms_norm_backward.default" in infinities.seen


@interpreted
def test_the_compiled_trace_sees_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "_way", lambda *_: norms_fused)
    x = maps(1.0).requires_grad_()
    with NativeTrace(compiled_recorder(), Places.of(nn.Module()), 1 << 28) as trace:
        y = rms_norm(x, None, Form(1e-6, 1, torch.float16))
        torch.autograd.grad(y, x, torch.full_like(y, float("inf")))
    seen = {event.key[:3]: event.nonfinite for event in trace.events()}
    assert seen["forward", "", "gemma_doctor.rms_norm"] == 0
    assert seen["backward", "", "gemma_doctor.rms_norm_backward"] > 0


@interpreted
def test_unwatched_the_fused_kernels_are_run_without_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the host longer than all the rest; the results are the same."""
    form, operands = Form(1e-6, 1, torch.float16), Operands(maps(1.0), None, None)
    with Infinities():
        watched = norms_fused.normalise(operands, form)
    monkeypatch.setattr(torch.ops.gemma_doctor, "rms_norm", lambda *_: pytest.fail("dispatched"))
    assert torch.equal(norms_fused.normalise(operands, form), watched)


class Seen(torch.Tensor):  # type: ignore[misc]  # torch counts as untyped
    """A tensor that writes down what is done to it below autograd, as those of torch's own tools do."""

    done: ClassVar[list[str]] = []

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        cls.done.append(str(func))
        plain = [one.plain if isinstance(one, Seen) else one for one in args]
        return func(*plain, **(kwargs or {}))


@interpreted
def test_tensors_that_watch_themselves_see_the_fused_kernels() -> None:
    form, x = Form(1e-6, 1, torch.float16), maps(1.0)
    seen: Any = torch.Tensor._make_wrapper_subclass(Seen, x.shape, x.stride(), dtype=x.dtype)  # noqa: SLF001
    seen.plain = x
    with torch.no_grad():
        found = norms_fused.normalise(Operands(seen, None, None), form)
    assert Seen.done == ["gemma_doctor.rms_norm.default"]
    assert torch.equal(found, norms_fused.normalise(Operands(x, None, None), form))


def test_without_torchs_private_name_all_counts_as_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the kernels are always run as operators: slower, and right."""
    with monkeypatch.context() as without:
        without.delattr(torch.utils._python_dispatch, "is_in_torch_dispatch_mode")  # noqa: SLF001
        assert runpy.run_path(devices.__file__)["is_watched"](torch.ones(1))
    assert not devices.is_watched(torch.ones(1))


@interpreted
@pytest.mark.parametrize(("count", "channels"), [(1, 1), (256, 16), (600, 20)])
def test_parts_of_a_weights_gradient_are_added_up(count: int, channels: int) -> None:
    parts = torch.randn((count, channels), generator=torch.Generator().manual_seed(0))
    found = torch.full((channels,), math.nan, dtype=torch.float16)
    norms_tiles.adding(count, channels).start((parts, found))
    torch.testing.assert_close(found.double(), parts.double().sum(0), rtol=2.0**-11, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 24, 64, 256, 257, 640, 2048, 2049, 2560, 4096, 5376, 8192])
@pytest.mark.parametrize("layout", ["rows", "maps"])
def test_what_is_read_ahead_fits_the_smallest_gpu(channels: int, layout: str) -> None:
    """64 KiB of shared memory, with two tensors of float32: all stages but one lie there."""
    shape, dim = (torch.Size((9000, channels)), -1) if layout == "rows" else (torch.Size((4, channels, 9000)), 1)
    found = norms_tiles.plan(shape, torch.empty(shape, device="meta").stride(), dim)
    assert found is not None
    *_, block, stages = found.backward.tile
    held = found.backward.tile[0] if found.before else sum(norms_tiles.tiles(channels))
    assert stages > 0
    assert (stages - 1) * block * held * 8 <= 1 << 16


@interpreted
@pytest.mark.parametrize("layout", ["rows", "maps"])
def test_a_program_that_goes_over_several_blocks(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    monkeypatch.setattr(norms_tiles, "_WARPS", 4)
    norms_tiles.plan.cache_clear()
    random = torch.Generator().manual_seed(0)
    shape, dim = ((700, 24), -1) if layout == "rows" else ((3, 24, 90), 1)
    x, grad = (torch.randn(shape, generator=random).half() for _ in range(2))
    weight, form = torch.randn(24, generator=random).half(), Form(1e-6, dim, torch.float16)
    found = norms_tiles.plan(x.shape, x.stride(), dim)
    assert found is not None
    assert 1 < found.backward.grid[0] < math.prod(found.forward.grid) / 2
    operands = Operands(x, weight, None)
    _, inverse = norms_torch.forward(operands, form)
    mine = norms_fused.backward(grad, operands, inverse.flatten(), form, frozen=False)
    theirs = norms_torch.backward(grad, operands, inverse, form, frozen=False)
    norms_tiles.plan.cache_clear()
    torch.testing.assert_close(mine[0], theirs[0], rtol=2.0**-10, atol=1e-5)
    torch.testing.assert_close(mine[1], theirs[1], rtol=2.0**-8, atol=1e-3)


@interpreted
@pytest.mark.parametrize("layout", ["rows", "maps"])
def test_the_fused_kernels_add_eps(layout: str) -> None:
    x, form = maps(2.0**-10, channels=24), Form(1e-6, 1, torch.float16)
    x = x if layout == "maps" else x.to(memory_format=torch.channels_last)
    close(norms_fused.normalise(Operands(x, None, None), form), reference(x, None, form, None))


def agree_on_maps(channels: int, layout: torch.memory_format, sides: tuple[int, int, int]) -> None:
    """The fused kernels and the plain ones, of a batch of maps of some height and width."""
    random = torch.Generator().manual_seed(channels)
    batch, *side = sides
    x = torch.randn((batch, channels, *side), generator=random).half().to(memory_format=layout)
    weight = torch.randn(channels, generator=random).half()
    form, operands = Form(1e-6, 1, torch.float16, gelu=True), Operands(x, weight, None)
    (mine, inverse), (theirs, same) = norms_fused.forward(operands, form), norms_torch.forward(operands, form)
    torch.testing.assert_close(mine, theirs, rtol=2.0**-10, atol=1e-6)
    grad = torch.randn(x.shape, generator=random).half()
    found = norms_fused.backward(grad, operands, inverse, form, frozen=False)
    wanted = norms_torch.backward(grad, operands, same, form, frozen=False)
    torch.testing.assert_close(found[0], wanted[0], rtol=2.0**-10, atol=1e-5)
    torch.testing.assert_close(found[1], wanted[1], rtol=2.0**-8, atol=1e-3)


@interpreted
@pytest.mark.parametrize("channels", [3, 64, 65, 96, 640, 1000])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_numbers_of_channels_that_tiles_do_not_divide(channels: int, layout: torch.memory_format) -> None:
    """Nor blocks of positions; fewer of these where channels are many, for an interpreter takes its time."""
    agree_on_maps(channels, layout, (2, 5, 9) if channels < 100 else (1, 3, 3))


@interpreted
def test_maps_of_more_channels_than_a_program_holds_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than 2,048; here of as few as an interpreter goes through in a second."""
    plan = norms_tiles.plan.__wrapped__
    plans = [plan(x.shape, x.stride(), 1) for x in (torch.empty((2, channels, 5, 9)) for channels in (2048, 2049))]
    assert [found.shares for found in plans if found] == [0, 65]
    monkeypatch.setattr(norms_tiles, "_MANY", 96)
    monkeypatch.setattr(norms_fused, "plan", plan)
    agree_on_maps(97, torch.contiguous_format, (2, 5, 9))


def test_no_norm_gives_more_than_its_gain_allows_and_one_channel_alone_reaches_it() -> None:
    weight = torch.tensor([-3.0, 0.0, 2.0, -0.5])
    for offset in (0.0, 1.0):
        bounds = gain_bound(weight, offset)
        alone = rms_norm(torch.eye(4) * 100, weight, Form(1e-6, -1, torch.float32, offset=offset)).abs().amax(0)
        torch.testing.assert_close(alone.double(), bounds, rtol=1e-6, atol=0)


# Powers of two


@given(st.lists(st.floats(0, 1e30), min_size=1))
def test_exponents_are_the_smallest_that_fit(bounds: list[float]) -> None:
    found = exponents(torch.tensor(bounds, dtype=torch.float64))
    assert found.dtype == torch.int32
    for bound, k in zip(bounds, found.tolist(), strict=True):
        assert bound * 2.0**-k <= ROOM
        assert k == 0 or bound * 2.0 ** -(k - 1) > ROOM


def test_powers_of_two_are_exact() -> None:
    every = torch.arange(-126, 128, dtype=torch.int32)
    assert power_of_two(every).tolist() == [2.0**k for k in every.tolist()]
    assert power_of_two(torch.tensor([-500, 500], dtype=torch.int32)).tolist() == [2.0**-126, 2.0**127]


@pytest.mark.parametrize("groups", [1, 3])
def test_no_input_leads_beyond_a_bound_and_one_reaches_it(groups: int) -> None:
    random = torch.Generator().manual_seed(groups)
    weight = torch.randn((6, 6 // groups, 1, 1), generator=random, dtype=torch.float64)
    largest = torch.rand(6, generator=random, dtype=torch.float64) * 10
    bias = torch.randn(6, generator=random, dtype=torch.float64)
    bounds = row_bounds(weight, largest, bias)
    x = (torch.rand((64, 6, 1, 1), generator=random, dtype=torch.float64) * 2 - 1) * largest.view(-1, 1, 1)
    results = torch.nn.functional.conv2d(x, weight, bias, groups=groups)
    assert bool((results.abs().amax((0, 2, 3)) <= bounds).all())
    for row in range(6):
        first = row // (6 // groups) * (6 // groups)
        inputs = slice(first, first + 6 // groups)
        worst = torch.zeros((1, 6, 1, 1), dtype=torch.float64)
        worst[0, inputs, 0, 0] = weight[row, :, 0, 0].sign() * largest[inputs] * bias[row].sign()
        reached = torch.nn.functional.conv2d(worst, weight, bias, groups=groups)[0, row, 0, 0]
        torch.testing.assert_close(reached.abs(), bounds[row])
