"""What the kernels for GPUs cost: ``PYTHONPATH=src python benchmarks/gpu_kernels.py [PART ...]``.

Needs one CUDA GPU, torch, triton and timm; builds its models with random weights and downloads nothing. Each part first
compares its kernels with plain torch on the same GPU, and fails if they differ; then it prints its rows, and at the end
there is a table. TF32 is off, as a T4 has none. Medians of CUDA events, entrants in turns. While an entrant of the
statistics or the norms is being enqueued the GPU is still busy with something else, so that they are timed without the
host's part; norms go over several inputs in turn, which no cache holds together. The encoder is timed with it.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from table import Row, markdown

from gemma_doctor.kernels import guard
from gemma_doctor.kernels.guards import norms_fused, norms_torch
from gemma_doctor.kernels.guards.norms_torch import Form, Operands
from gemma_doctor.kernels.outputs import launch
from gemma_doctor.kernels.outputs_torch import enqueue, read

GPU = torch.device("cuda")
MIB = 1 << 20
SIZES = (16 * MIB, 128 * MIB, 2048 * MIB)
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
MAPS = ((64, 384), (128, 192), (256, 96), (640, 48), (1280, 24), (2560, 48), (2048, 16))
"""Channels and side of the norms' inputs in the encoder at 768 pixels, or nearly."""


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all, in this order")
    parser.add_argument("--side", type=int, default=768, help="height and width of the images")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16], help="images at a time")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each entrant")
    options = parser.parse_args()
    unknown = sorted({*options.parts} - {*PARTS})
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", file=sys.stderr)
    rows: list[Row] = []
    for part in options.parts or PARTS:
        for row in PARTS[part](options):
            print(f"{row.what}: {row.ours}; {row.beside}; {row.ratio}", file=sys.stderr, flush=True)
            rows.append(row)
    print(markdown(rows))


def race(entrants: Mapping[str, Callable[[], object]], rounds: int, *, hidden: bool = True) -> dict[str, float]:
    """Median seconds of each entrant on the GPU; they run in turns, after two runs that do not count.

    Args:
        entrants: What to run.
        rounds: How often.
        hidden: Whether the GPU is kept busy while the host enqueues.
    """
    times: dict[str, list[float]] = {name: [] for name in entrants}
    for turn in range(rounds + 2):
        for name, run in entrants.items():
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            if hidden:
                _occupy()
            start.record()
            run()
            stop.record()
            torch.cuda.synchronize()
            if turn > 1:
                times[name].append(start.elapsed_time(stop) / 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def _occupy() -> None:
    """About 2 ms of work on a GPU of 3 TB/s."""
    for _ in range(3):
        _filler().zero_()


@cache
def _filler() -> torch.Tensor:
    return torch.empty(1 << 31, dtype=torch.uint8, device=GPU)


# Do they agree?


def statistics_agree() -> None:
    """The Triton statistics against torch's reductions and the CPU's loops, without waiting for the GPU in between."""
    bits = torch.arange(1 << 16, dtype=torch.int32)
    every = [bits.to(torch.int16).view(dtype).to(GPU) for dtype in (torch.float16, torch.bfloat16)]
    random = torch.Generator(GPU).manual_seed(0)
    drawn = torch.randint(-(2**31), 2**31 - 1, (100_003,), device=GPU, dtype=torch.int64, generator=random)
    every.append(drawn.to(torch.int32).view(torch.float32))
    wide = [torch.randn(size, device=GPU, generator=random) for size in (1, 7, 4096, 70_001, 5_000_001)]
    tensors = [*every, *(x.to(dtype)[skip:] for x in wide for dtype in HALVES.values() for skip in (0, 1))]
    tensors += [
        torch.full((9000,), 1e-30, device=GPU),
        torch.zeros(5, device=GPU),
        torch.randn(99, device=GPU).double(),
    ]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    launched = launch(tensors)
    torch.cuda.set_sync_debug_mode("default")
    plain = read(enqueue(tensors), [tensor.numel() for tensor in tensors])
    counted = launch([tensor.cpu() for tensor in tensors]).stats()
    names = ("count", "nan", "inf", "zeros", "fp16_overflow", "fp16_subnormal", "fp16_underflow", "minimum", "maximum")
    for index, (found, *others) in enumerate(zip(launched.stats(), plain, counted, strict=True)):
        for other in others:
            for name in names:
                if getattr(found, name) != getattr(other, name):
                    raise SystemExit(f"tensor {index}: {name} {getattr(found, name)} is not {getattr(other, name)}")
            sums = [float(stats.squares) if stats.squares is not None else None for stats in (found, other)]
            if sums[0] is None or sums[1] is None or abs(sums[0] - sums[1]) > 2.0**-17 * abs(sums[1]):
                raise SystemExit(f"tensor {index}: squares {sums[0]} are not {sums[1]}")
    print(f"statistics: {len(tensors)} tensors agree", file=sys.stderr)


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
                for way in (norms_fused, norms_torch):
                    y, inverse = way.forward(operands, form)
                    results.append((y, *way.backward(grad, operands, inverse, form, frozen=False)))
                for mine, theirs in zip(*results, strict=True):
                    error = float((mine.float() - theirs.float()).norm() / theirs.float().norm())
                    worst = max(worst, error / torch.finfo(dtype).eps)
    if not worst < 1.0:
        raise SystemExit(f"the fused norms differ from torch's by {worst} units in the last place")
    print(f"norms: agree within {worst:.2f} of the dtype's eps (as a whole)", file=sys.stderr)


# Statistics


def of_statistics(options: argparse.Namespace) -> Iterator[Row]:
    """One tensor, and many small ones."""
    statistics_agree()
    yield from of_large(options.rounds)
    yield from of_many_small(options.rounds)


def of_large(rounds: int) -> Iterator[Row]:
    """One tensor against a copy of it, in bytes that move."""
    for name, dtype in HALVES.items():
        for nbytes in SIZES:
            x = torch.randn(nbytes // dtype.itemsize, device=GPU, dtype=dtype)
            y = torch.empty_like(x)
            seconds = race(
                {
                    "ours": partial(launch, [x]),
                    "copy": partial(y.copy_, x),
                    "norm": partial(torch.linalg.vector_norm, x, float("inf")),
                },
                rounds,
            )
            speed, copied = nbytes / seconds["ours"], 2 * nbytes / seconds["copy"]
            yield Row(
                f"statistics of one {name} tensor, {nbytes // MIB} MiB",
                f"{speed / 1e9:,.0f} GB/s",
                f"copy {copied / 1e9:,.0f} GB/s, `vector_norm(inf)` {nbytes / seconds['norm'] / 1e9:,.0f}",
                speed / copied,
                ">= 0.9" if nbytes == SIZES[-1] else "",
                speed / copied >= 0.9 if nbytes == SIZES[-1] else None,
            )


def of_many_small(rounds: int) -> Iterator[Row]:
    """4,096 small tensors in one launch, against as many calls of a reduction, and against 256 of them."""
    tensors = [torch.randn(2048, device=GPU, dtype=torch.bfloat16) for _ in range(4096)]
    seconds = race(
        {
            "ours": lambda: launch(tensors),
            "few": lambda: launch(tensors[:256]),
            "foreach": lambda: torch._foreach_norm(tensors, float("inf")),  # noqa: SLF001  # torch has no public one
            "one by one": lambda: [torch.linalg.vector_norm(x, float("inf")) for x in tensors],
        },
        rounds,
        hidden=False,
    )
    yield Row(
        "statistics of 4,096 tensors of 4 KiB, one launch (with the host's part)",
        f"{seconds['ours'] * 1e3:.2f} ms",
        f"`_foreach_norm` {seconds['foreach'] * 1e3:.2f} ms, one by one {seconds['one by one'] * 1e3:.2f} ms, "
        f"256 of them {seconds['few'] * 1e3:.2f} ms",
        seconds["ours"] / seconds["one by one"],
        "",
        None,
    )


# Norms


def of_norms(options: argparse.Namespace) -> Iterator[Row]:
    """The fused norm with GELU and without, forward, against timm's, and its bytes against a copy's."""
    norms_agree()
    for layout in (torch.channels_last, torch.contiguous_format):
        for channels, side in MAPS:
            for gelu in (True, False):
                yield _norm_row(options, layout, (options.batches[0], channels, side, side), gelu=gelu)


def _norm_row(
    options: argparse.Namespace, layout: torch.memory_format, shape: tuple[int, int, int, int], *, gelu: bool
) -> Row:
    from timm.layers import RmsNormAct2d  # noqa: PLC0415  # the statistics do without

    norm = RmsNormAct2d(shape[1], act_layer="gelu_tanh", apply_act=gelu).to(GPU, torch.float16)
    norm.requires_grad_(requires_grad=False)
    guarded = copy.deepcopy(norm)
    guard(guarded)
    number = max(2, min(8, (160 * MIB) // (2 * math.prod(shape))))
    inputs = [torch.randn(shape, device=GPU, dtype=torch.float16).to(memory_format=layout) for _ in range(number)]
    results = [torch.empty_like(x) for x in inputs]

    def copied() -> None:
        for x, y in zip(inputs, results, strict=True):
            y.copy_(x)

    with torch.no_grad():
        entrants = {"ours": lambda: [guarded(x) for x in inputs], "timm": lambda: [norm(x) for x in inputs]}
        seconds = race({**entrants, "copy": copied}, options.rounds)
    micro = {name: value * 1e6 / number for name, value in seconds.items()}
    ratio = micro["copy"] / micro["ours"]
    return Row(
        f"norm{' and GELU' if gelu else ''}, {'x'.join(map(str, shape))}, {str(layout).removeprefix('torch.')}",
        f"{micro['ours']:,.1f} us",
        f"copy {micro['copy']:,.1f} us, timm {micro['timm']:,.1f} us",
        ratio,
        ">= 0.8",
        ratio >= 0.8,
    )


# The encoder


Entrant: TypeAlias = "tuple[Any, torch.Tensor]"
"""A model and its input."""


def of_the_encoder(options: argparse.Namespace) -> Iterator[Row]:
    """Gemma 3n's image encoder: plain, guarded, upcast the published way, in float32."""
    half = encoder()
    guarded = copy.deepcopy(half)
    print(guard(guarded), file=sys.stderr)
    models = {"plain": half, "guarded": guarded, "upcast": upcast(copy.deepcopy(half)), "float32": _float32(half)}
    for batch in options.batches:
        x = torch.randn((batch, 3, options.side, options.side), device=GPU, dtype=torch.float16)
        entrants = {name: (model, x.float() if name == "float32" else x) for name, model in models.items()}
        yield from _encoder_rows(entrants, options.rounds, backward=False)
        if batch == options.batches[0]:
            yield from _replayed_rows(entrants, options.rounds)
            yield from _encoder_rows(entrants, options.rounds, backward=True)
            del models["upcast"], models["float32"]  # too slow for more images


def of_the_compiled_encoder(options: argparse.Namespace) -> Iterator[Row]:
    """The same by torch.compile, plain and guarded, forward."""
    half = encoder()
    guarded = copy.deepcopy(half)
    guard(guarded)
    x = torch.randn((options.batches[0], 3, options.side, options.side), device=GPU, dtype=torch.float16)
    models = {"plain compiled": (torch.compile(half), x), "guarded compiled": (torch.compile(guarded), x)}
    runs = {name: partial(_run, entrant, backward=False) for name, entrant in models.items()}
    seconds = race(runs, options.rounds, hidden=False)
    yield Row(
        f"encoder, forward, {options.batches[0]} images, guarded compiled against plain compiled",
        f"{seconds['guarded compiled'] * 1e3:.1f} ms",
        f"{seconds['plain compiled'] * 1e3:.1f} ms",
        seconds["guarded compiled"] / seconds["plain compiled"],
        "",
        None,
    )


def encoder() -> Any:  # noqa: ANN401  # a class of timm
    """The image encoder in float16, on the GPU."""
    import timm  # noqa: PLC0415  # the statistics do without

    return timm.create_model("mobilenetv5_300m_enc", pretrained=False).to(GPU, torch.float16).eval()


def _float32(half: Any) -> Any:  # noqa: ANN401  # a class of timm
    return copy.deepcopy(half).float()


def _run(entrant: Entrant, *, backward: bool) -> None:
    model, x = entrant
    with torch.set_grad_enabled(backward):
        result = model(x)
        if backward:
            result.float().mean().backward()
            model.zero_grad()


def _encoder_rows(entrants: dict[str, Entrant], rounds: int, *, backward: bool) -> Iterator[Row]:
    peaks = {name: _peak(partial(_run, entrant, backward=backward)) for name, entrant in entrants.items()}
    runs = {name: partial(_run, entrant, backward=backward) for name, entrant in entrants.items()}
    seconds = race(runs, rounds, hidden=False)
    images = next(iter(entrants.values()))[1].shape[0]
    part = f"encoder, {'forward and backward' if backward else 'forward'}, {images} images"
    yield from _against(part, seconds, {"plain": 0.7} if backward else _FORWARD)
    memory = peaks["guarded"] / peaks["plain"]
    yield Row(
        f"{part}, peak memory beyond the weights",
        f"{peaks['guarded'] / MIB:,.0f} MiB",
        f"{peaks['plain'] / MIB:,.0f} MiB",
        memory,
        "<= 1.02",
        memory <= 1.02,
    )


def _replayed_rows(entrants: dict[str, Entrant], rounds: int) -> Iterator[Row]:
    """The forward pass replayed from a CUDA graph: what the GPU takes where the host does not hold it up."""
    seconds = race({name: _recorded(entrant).replay for name, entrant in entrants.items()}, rounds, hidden=False)
    images = entrants["plain"][1].shape[0]
    yield from _against(f"encoder, forward, {images} images, CUDA graph", seconds, _FORWARD)


_FORWARD = {"plain": 0.6, "upcast": 0.35}
"""The most that the guarded forward pass may take of a peer's time."""


def _against(part: str, seconds: dict[str, float], targets: dict[str, float]) -> Iterator[Row]:
    """The guarded time beside each peer's."""
    for peer in ("plain", "upcast", "float32"):
        ratio, target = seconds["guarded"] / seconds[peer], targets.get(peer)
        yield Row(
            f"{part}, against {peer}",
            f"{seconds['guarded'] * 1e3:.1f} ms",
            f"{seconds[peer] * 1e3:.1f} ms",
            ratio,
            "" if target is None else f"<= {target}",
            None if target is None else ratio <= target,
        )


def _recorded(entrant: Entrant) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _run(entrant, backward=False)
    return graph


def _peak(run: Callable[[], None]) -> int:
    """Most bytes that the second run takes beyond what was there."""
    run()
    torch.cuda.synchronize()
    before = int(torch.cuda.memory_allocated())
    torch.cuda.reset_peak_memory_stats()
    run()
    return int(torch.cuda.max_memory_allocated()) - before


def upcast(model: Any) -> Any:  # noqa: ANN401  # a class of timm
    """The published way: the convolutions inside ConvNormAct in float32, weights and inputs cast on the fly."""
    for module in model.modules():
        if type(module).__name__ == "ConvNormAct":
            module.conv.forward = _upcast_forward(module.conv)
    return model


def _upcast_forward(conv: Any) -> Callable[[torch.Tensor], torch.Tensor]:  # noqa: ANN401  # a class of timm
    from gemma_doctor.kernels.guards.convolutions import in_float32  # noqa: PLC0415  # the same operations

    return lambda x: in_float32(conv, x).to(x.dtype)


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "statistics": of_statistics,
    "norms": of_norms,
    "encoder": of_the_encoder,
    "compiled": of_the_compiled_encoder,
}
"""By name. Compiling takes minutes, and comes last."""


if __name__ == "__main__":
    main()
