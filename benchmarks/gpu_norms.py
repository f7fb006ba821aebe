"""The fused norms, forward and backward, against a copy of their bytes: parts of ``gpu_kernels.py``.

A forward pass reads its input and writes its result; a backward pass reads the input and the result's gradient, and
writes the input's. A copy of a tensor moves two of these. So the least that either can take is the copy's time, times
the bytes it moves over those that the copy moves; the rows give that share. Vectors over the channels or the positions
(gains, factors, and a weight's gradient in parts) are left out of the count.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from gpu_timing import GPU, MIB, race
from table import Row
from torch.nn import functional

from gemma_doctor.kernels.guards import norms_fused, norms_torch
from gemma_doctor.kernels.guards.norms_torch import Form, Operands

__all__ = [
    "MAPS",
    "Case",
    "backward_bytes",
    "backward_of_norms",
    "copies",
    "forward_bytes",
    "of_maps",
    "of_norms",
    "of_rows",
    "our_backward",
    "our_forward",
]

MAPS = ((64, 384), (128, 192), (256, 96), (640, 48), (1280, 24), (2560, 48), (2048, 16))
"""Channels and side of the norms' inputs in the encoder at 768 pixels, or nearly."""

TEXT = ((8192, 2048), (8192, 2560), (8192, 5376), (65536, 256))
"""Rows and channels: 8,192 tokens of Gemma 3n E2B, of Gemma 3 4B and 27B, and of eight heads each (q_norm)."""

LAYOUTS = (torch.channels_last, torch.contiguous_format)


@dataclass(frozen=True, slots=True)
class Case:
    """A norm to be timed.

    Attributes:
        what: Its name.
        form: Which norm.
        inputs: So many tensors that no cache holds them together.
        weight: Its gain.
        peer: Its name, and another implementation of the same.
    """

    what: str
    form: Form
    inputs: list[torch.Tensor]
    weight: torch.Tensor
    peer: tuple[str, Callable[[torch.Tensor], torch.Tensor]]


def of_norms(options: argparse.Namespace) -> Iterator[Row]:
    """Forward."""
    norms_agree()
    for case in _cases(options.batches[0]):
        yield _forward_row(case, options.rounds)


def backward_of_norms(options: argparse.Namespace) -> Iterator[Row]:
    """Backward: the gradients of the input and of the weight."""
    norms_agree()
    for case in _cases(options.batches[0]):
        yield _backward_row(case, options.rounds)


def _cases(batch: int) -> Iterator[Case]:
    for layout in LAYOUTS:
        for channels, side in MAPS:
            for gelu in (True, False):
                yield of_maps((batch, channels, side, side), layout, gelu=gelu)
    for shape in TEXT:
        for dtype in (torch.float16, torch.float32):
            yield of_rows(shape, dtype)


def of_maps(shape: tuple[int, int, int, int], layout: torch.memory_format, *, gelu: bool) -> Case:
    """Of float16 maps, against timm's."""
    from timm.layers import RmsNormAct2d  # noqa: PLC0415  # other parts do without

    norm = RmsNormAct2d(shape[1], act_layer="gelu_tanh", apply_act=gelu).to(GPU, torch.float16)
    inputs = _inputs(shape, torch.float16, layout)
    name = f"norm{' and GELU' if gelu else ''}, {'x'.join(map(str, shape))}, {str(layout).removeprefix('torch.')}"
    return Case(name, Form(norm.eps, 1, torch.float16, gelu=gelu), inputs, norm.weight, ("timm", norm))


def of_rows(shape: tuple[int, int], dtype: torch.dtype) -> Case:
    """The float16 result of a float16 or a float32 input, as the guarded text models have it; against torch's own."""
    weight = torch.randn(shape[1], device=GPU, dtype=torch.float16, requires_grad=True)

    def plain(x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, shape[1:], weight.to(x.dtype), 1e-6).half()

    name = f"norm, {shape[0]}x{shape[1]}, rows of {str(dtype).removeprefix('torch.')}"
    form = Form(1e-6, -1, torch.float16)
    return Case(name, form, _inputs(shape, dtype, torch.contiguous_format), weight, ("`torch.rms_norm`", plain))


def _inputs(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> list[torch.Tensor]:
    number = max(2, min(8, (160 * MIB) // (dtype.itemsize * math.prod(shape))))
    return [torch.randn(shape, device=GPU, dtype=dtype).to(memory_format=layout) for _ in range(number)]


def _forward_row(case: Case, rounds: int) -> Row:
    with torch.no_grad():
        peer = _each(case.peer[1], case.inputs)
        seconds = race({"ours": our_forward(case), "peer": peer, "copy": copies(case)}, rounds)
    return _row(f"{case.what}, forward", case, seconds, forward_bytes(case))


def _backward_row(case: Case, rounds: int) -> Row:
    """The host's part is hidden, and so is autograd's, which runs the peer's backward pass."""
    leaves = [x.detach().requires_grad_() for x in case.inputs]
    results = [case.peer[1](x) for x in leaves]
    grads = _gradients(case)

    def peer() -> None:
        for x, y, grad in zip(leaves, results, grads, strict=True):
            torch.autograd.grad(y, (x, case.weight), grad, retain_graph=True)

    seconds = race({"ours": our_backward(case), "peer": peer, "copy": copies(case)}, rounds)
    return _row(f"{case.what}, backward", case, seconds, backward_bytes(case))


def our_forward(case: Case) -> Callable[[], object]:
    """The fused kernel over every input."""
    return lambda: [norms_fused.normalise(Operands(x, case.weight, None), case.form) for x in case.inputs]


def our_backward(case: Case) -> Callable[[], None]:
    """The fused kernel over every input and a gradient for each."""
    grads = _gradients(case)
    kept = [norms_fused.forward(Operands(x, case.weight, None), case.form)[1] for x in case.inputs]

    def ours() -> None:
        for x, grad, inverse in zip(case.inputs, grads, kept, strict=True):
            norms_fused.backward(grad, Operands(x, case.weight, None), inverse, case.form, frozen=False)

    return ours


def _gradients(case: Case) -> list[torch.Tensor]:
    return [torch.randn_like(x, dtype=case.form.out) for x in case.inputs]


def forward_bytes(case: Case) -> int:
    """What one forward pass must move."""
    return int(case.inputs[0].numel()) * int(case.inputs[0].dtype.itemsize + case.form.out.itemsize)


def backward_bytes(case: Case) -> int:
    """What one backward pass must move."""
    return int(case.inputs[0].numel()) * int(2 * case.inputs[0].dtype.itemsize + case.form.out.itemsize)


def _each(run: Callable[[torch.Tensor], torch.Tensor], inputs: list[torch.Tensor]) -> Callable[[], object]:
    return lambda: [run(x) for x in inputs]


def copies(case: Case) -> Callable[[], None]:
    """A copy of every input."""
    results = [torch.empty_like(x) for x in case.inputs]

    def copied() -> None:
        for x, y in zip(case.inputs, results, strict=True):
            y.copy_(x)

    return copied


def _row(what: str, case: Case, seconds: dict[str, float], moved: int) -> Row:
    """As a share of what a copy of as many bytes takes."""
    micro = {name: value * 1e6 / len(case.inputs) for name, value in seconds.items()}
    least = micro["copy"] * moved / (2 * case.inputs[0].nbytes)
    ratio = least / micro["ours"]
    beside = f"a copy of its bytes {least:,.1f} us, {case.peer[0]} {micro['peer']:,.1f} us"
    return Row(what, f"{micro['ours']:,.1f} us", beside, ratio, ">= 0.8", ratio >= 0.8)


def norms_agree() -> None:
    """The Triton norms against plain torch, forward and backward."""
    worst = 0.0
    for channels, side in ((640, 24), (1280, 24), (64, 96), (13, 5)):
        for dtype in (torch.float16, torch.bfloat16):
            for layout in (torch.contiguous_format, torch.channels_last):
                x = (torch.randn((2, channels, side, side), device=GPU) * 100).to(dtype).to(memory_format=layout)
                weight = torch.randn(channels, device=GPU).to(dtype)
                scale = 2.0 ** torch.randint(0, 6, (channels,), device=GPU).float()
                form, operands = Form(1e-6, 1, dtype, gelu=True), Operands(x, weight, scale)
                grad = torch.randn_like(x)
                results = []
                for way in (norms_fused, norms_fused, norms_torch):  # twice: the second time it is compiled already
                    y, inverse = way.forward(operands, form)
                    results.append((y, *way.backward(grad, operands, inverse, form, frozen=False)))
                for mine, theirs in [*zip(results[0], results[2], strict=True), *zip(*results[1:], strict=True)]:
                    error = float((mine.float() - theirs.float()).norm() / theirs.float().norm())
                    worst = max(worst, error / torch.finfo(dtype).eps)
    if not worst < 1.0:
        raise SystemExit(f"the fused norms differ from torch's by {worst} units in the last place")
    print(f"norms: agree within {worst:.2f} of the dtype's eps (as a whole)", file=sys.stderr)
