"""The tiles that the fused norms could take: ``PYTHONPATH=src python benchmarks/gpu_norm_tiles.py [PART ...]``.

The tables of ``gemma_doctor/kernels/guards/norms_tiles.py`` were chosen by this. Needs one CUDA GPU, torch, triton and
timm. For each shape every tile is compared with plain torch, then timed against a copy of the bytes it must move, as
``gpu_norms.py`` times the tile that is chosen: that one is marked.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import torch
from gpu_norms import (
    MAPS,
    Case,
    backward_bytes,
    copies,
    forward_bytes,
    of_maps,
    of_rows,
    our_backward,
    our_forward,
)
from gpu_timing import race

from gemma_doctor.kernels.guards import norms_fused, norms_tiles, norms_torch
from gemma_doctor.kernels.guards.norms_tiles import Plan
from gemma_doctor.kernels.guards.norms_torch import Operands

SHAPES = (*MAPS, (3840, 48))
ROWS = ((147456, 64), (36864, 256), (9216, 640), (2304, 1280), (9216, 2560), (1024, 2048), (8192, 2048), (8192, 5376))


@dataclass(frozen=True, slots=True)
class Tile:
    """One that a kernel may take.

    Attributes:
        block: Positions of a program.
        warps: Of a program.
        stages: Blocks under way at a time in the backward pass; 0 in the forward pass.
        resident: Warps of all programs of a backward pass.
    """

    block: int
    warps: int
    stages: int
    resident: int = 2112


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each tile")
    options = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", file=sys.stderr)
    print("| norm | block | warps | stages | programs | us | a copy of its bytes, us | share |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for part in options.parts or PARTS:
        for text in PARTS[part](options.rounds):
            print(text, flush=True)


def over_maps(rounds: int, *, backward: bool) -> Iterator[str]:
    """Contiguous maps, with GELU."""
    for channels, side in SHAPES:
        yield from _of_shape(partial(of_maps, (4, channels, side, side), torch.contiguous_format), rounds, backward)


def over_rows(rounds: int, *, backward: bool) -> Iterator[str]:
    """Channels that come last, without GELU."""
    for shape in ROWS:
        yield from _of_shape(lambda shape=shape, **_: of_rows(shape, torch.float16), rounds, backward)


def _of_shape(build: Callable[..., Case], rounds: int, backward: bool) -> Iterator[str]:  # noqa: FBT001  # a direction
    case = build(gelu=True)
    plan = _plan(case)
    chosen = _chosen(plan, backward)
    moved = backward_bytes(case) if backward else forward_bytes(case)
    way = "backward" if backward else "forward"
    for tile in dict.fromkeys((chosen, *_tiles(case, backward))):
        tiled = _with(plan, case, tile, backward)
        with mock.patch.object(norms_fused, "plan", return_value=tiled), torch.no_grad():
            _compare(case, backward)
            run = our_backward(case) if backward else our_forward(case)
            seconds = race({"ours": run, "copy": copies(case)}, rounds)
        ours, copied = (seconds[name] * 1e6 / len(case.inputs) for name in ("ours", "copy"))
        least = copied * moved / (2 * case.inputs[0].nbytes)
        programs = math.prod((tiled.backward if backward else tiled.forward).grid)
        name = f"{case.what}, {way}{' (chosen)' if tile == chosen else ''}"
        cells = f"{programs:,} | {ours:.1f} | {least:.1f} | {least / ours:.2f}"
        yield f"| {name} | {tile.block} | {tile.warps} | {tile.stages} | {cells} |"


def _plan(case: Case) -> Plan:
    x = case.inputs[0]
    found = norms_tiles.plan(x.shape, x.stride(), case.form.dim)
    if found is None:
        raise SystemExit(f"{case.what}: the kernels cannot read it")
    return found


def _chosen(plan: Plan, backward: bool) -> Tile:  # noqa: FBT001  # a direction, here and below
    launch = plan.backward if backward else plan.forward
    return Tile(launch.tile[3], launch.warps, launch.tile[4] if backward else 0)


def _tiles(case: Case, backward: bool) -> Iterator[Tile]:  # noqa: FBT001
    """Those whose threads hold from 12 to 80 elements (to 40 backward, which holds two tensors)."""
    channels = case.weight.numel()
    for block in (8, 16, 32, 64, 128) if case.form.dim == 1 else (1, 2, 4, 8, 16, 32):
        for warps in (2, 4, 8, 16):
            each = block * sum(norms_tiles.tiles(channels)) / (32 * warps)
            if not backward and 12 <= each <= 80:
                yield Tile(block, warps, 0)
            elif backward and 12 <= each <= 40:
                yield from (Tile(block, warps, stages, 2112) for stages in (1, 2, 3))
                yield from (Tile(block, warps, stages, 4224) for stages in (2, 3))


def _with(plan: Plan, case: Case, tile: Tile, backward: bool) -> Plan:  # noqa: FBT001
    """With another tile for one of the passes."""
    items = case.inputs[0].shape[0]
    maps = (items, plan.channels, plan.positions // items)
    shape = maps if case.form.dim == 1 else (plan.positions, plan.channels)
    with mock.patch.object(norms_tiles, "_WARPS", tile.resident):
        launch = norms_tiles.tiled(shape, tile.block, tile.warps, tile.stages)
    if backward:
        return replace(plan, backward=launch, adding=norms_tiles.adding(launch))
    return replace(plan, forward=launch)


def _compare(case: Case, backward: bool) -> None:  # noqa: FBT001
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
    "maps": partial(over_maps, backward=False),
    "maps-backward": partial(over_maps, backward=True),
    "rows": partial(over_rows, backward=False),
    "rows-backward": partial(over_rows, backward=True),
}
"""By name."""


if __name__ == "__main__":
    main()
