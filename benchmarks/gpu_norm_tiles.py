"""The tiles that the fused norms could take: ``PYTHONPATH=src python benchmarks/gpu_norm_tiles.py [PART ...]``.

The tables of ``gemma_doctor/kernels/guards/norms_tiles.py`` were chosen by this. Needs one CUDA GPU, torch, triton and
timm. For each shape the plan that is chosen and every other is compared with plain torch, then timed against a copy of
the bytes it must move, as ``gpu_norms.py`` times the chosen one.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch
from gpu_norms import MAPS, Case, backward_bytes, copies, forward_bytes, of_maps, of_rows, our_backward, our_forward
from gpu_timing import race

from gemma_doctor.kernels.guards import norms_fused, norms_tiles, norms_torch
from gemma_doctor.kernels.guards.norms_tiles import Plan, Split
from gemma_doctor.kernels.guards.norms_torch import Operands

ROWS = ((147456, 64), (36864, 256), (9216, 640), (2304, 1280), (9216, 2560), (1024, 2048), (8192, 2048), (8192, 5376))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each plan")
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", file=sys.stderr)
    print("| norm | plan | programs | us | a copy of its bytes, us | share |")
    print("| --- | --- | ---: | ---: | ---: | ---: |", flush=True)
    for part in options.parts or PARTS:
        for text in PARTS[part](options.rounds):
            print(text, flush=True)


def over_maps(rounds: int, *, backward: bool, shared: bool) -> Iterator[str]:
    """Contiguous maps, with GELU; programs that hold all channels, or that share them."""
    for channels, side in MAPS:
        if channels >= 256 if shared else channels <= 256:
            case = of_maps((4, channels, side, side), torch.contiguous_format, gelu=True)
            yield from _of_case(case, _shared if shared else _whole, rounds, backward=backward)


def over_rows(rounds: int, *, backward: bool) -> Iterator[str]:
    """Channels that come last, without GELU."""
    for shape in ROWS:
        yield from _of_case(of_rows(shape, torch.float16), _whole, rounds, backward=backward)


def _of_case(
    case: Case, others: Callable[[Case, bool], Iterator[tuple[str, Plan]]], rounds: int, *, backward: bool
) -> Iterator[str]:
    x = case.inputs[0]
    chosen = norms_tiles.plan(x.shape, x.stride(), case.form.dim)
    if chosen is None:
        raise SystemExit(f"{case.what}: the kernels cannot read it")
    moved = backward_bytes(case) if backward else forward_bytes(case)
    for name, plan in [("chosen", chosen), *others(case, backward)]:
        with mock.patch.object(norms_fused, "plan", return_value=plan), torch.no_grad():
            _compare(case, backward=backward)
            run = our_backward(case) if backward else our_forward(case)
            seconds = race({"ours": run, "copy": copies(case)}, rounds)
        ours, copied = (seconds[entrant] * 1e6 / len(case.inputs) for entrant in ("ours", "copy"))
        least = copied * moved / (2 * x.nbytes)
        programs = math.prod((plan.backward if backward else plan.forward).grid)
        what = f"{case.what}, {'backward' if backward else 'forward'}"
        yield f"| {what} | {name} | {programs:,} | {ours:.1f} | {least:.1f} | {least / ours:.2f} |"


def _whole(case: Case, backward: bool) -> Iterator[tuple[str, Plan]]:  # noqa: FBT001  # a direction
    """Those whose threads hold from 12 to 80 elements (to 40 backward, which holds two tensors)."""
    shape = _shape(case)
    channels, positions = shape[1], math.prod(shape) // shape[1]
    for block in (16, 32, 64, 128) if len(shape) == 3 else (1, 2, 4, 8, 16, 32):
        for warps in (1, 2, 4, 8, 16):
            each = block * sum(norms_tiles.tiles(channels)) / (32 * warps)
            if not 12 <= each <= (40 if backward else 80):
                continue
            forward = norms_tiles.tiled(shape, block, warps)
            for stages, resident in ((1, 2112), (2, 2112), (3, 2112), (2, 4224)) if backward else ((1, 2112),):
                with mock.patch.object(norms_tiles, "_WARPS", resident):
                    gradients = norms_tiles.tiled(shape, block, warps, stages)
                name = f"{block} positions, {warps} warps{f', {stages} stages' if backward else ''}"
                yield name, norms_tiles.whole(channels, positions, forward, gradients)


def _shared(case: Case, backward: bool) -> Iterator[tuple[str, Plan]]:  # noqa: ARG001, FBT001  # the same in both
    items, channels, positions = _shape(case)
    for block, step, warps in ((32, 64, 4), (64, 32, 4), (128, 32, 8)):
        for stages, programs in ((3, 264), (3, 528), (3, 1056), (2, 528)):
            how = Split(block, programs, stages, step, warps)
            name = f"{block} positions, {step} channels at a time, {warps} warps, {stages} stages, {programs}"
            yield name, norms_tiles.split((items, channels, positions), how, how)


def _shape(case: Case) -> tuple[int, ...]:
    """As the plans want it: maps by their batch, channels and positions."""
    x = case.inputs[0]
    return tuple(x.flatten(2).shape if case.form.dim == 1 else x.shape)


def _compare(case: Case, *, backward: bool) -> None:
    x = case.inputs[0]
    operands, grad = Operands(x, case.weight, None), torch.randn_like(x, dtype=case.form.out)
    results = []
    for way in (norms_fused, norms_torch):
        y, inverse = way.forward(operands, case.form)
        results.append(way.backward(grad, operands, inverse, case.form, frozen=False) if backward else (y,))
    for mine, theirs in zip(*results, strict=True):
        error = float((mine.float() - theirs.float()).norm() / theirs.float().norm())
        if not error < torch.finfo(torch.float16).eps:
            raise SystemExit(f"{case.what}: differs from torch's by {error}")


PARTS: dict[str, Callable[[int], Iterator[str]]] = {
    "maps": partial(over_maps, backward=False, shared=False),
    "maps-backward": partial(over_maps, backward=True, shared=False),
    "shared": partial(over_maps, backward=False, shared=True),
    "shared-backward": partial(over_maps, backward=True, shared=True),
    "rows": partial(over_rows, backward=False),
    "rows-backward": partial(over_rows, backward=True),
}
"""By name."""


if __name__ == "__main__":
    main()
