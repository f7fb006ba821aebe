"""Gemma 3n's image encoder, guarded and in the other ways: parts of ``gpu_kernels.py``.

Plain float16, guarded, upcast the published way (the convolutions inside ``ConvNormAct`` in float32), and as a whole in
float32. As it is called, or replayed from a CUDA graph, which shows what the GPU takes where the host does not hold it
up. A way that the GPU's memory does not hold is left out of its rows.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from gpu_timing import GPU, MIB, race
from table import Row

from gemma_doctor.kernels import guard
from gemma_doctor.kernels.guards.convolutions import in_float32

__all__ = ["of_compiled", "of_compiled_blocks", "of_graphs", "of_many_images", "of_the_encoder"]

PEERS = ("plain", "upcast", "float32")
FORWARD, TRAINING = {"plain": 0.6, "upcast": 0.35}, {"plain": 0.7}
"""The most that a guarded pass may take of a peer's time: forward, and forward and backward."""

Run: TypeAlias = "Callable[[], None]"


def of_the_encoder(options: argparse.Namespace, *, backward: bool) -> Iterator[Row]:
    """Every way, as it is called, with the fewest images."""
    images = options.batches[0]
    runs = _runs(("guarded", *PEERS), images, options.side, backward=backward)
    yield from _called(_part(images, backward=backward), runs, options, TRAINING if backward else FORWARD)


def of_many_images(options: argparse.Namespace, *, backward: bool) -> Iterator[Row]:
    """The same with more images, and without the slow ways."""
    for images in options.batches[1:]:
        runs = _runs(("guarded", "plain"), images, options.side, backward=backward)
        yield from _called(_part(images, backward=backward), runs, options, TRAINING if backward else FORWARD)


def of_graphs(options: argparse.Namespace, *, backward: bool) -> Iterator[Row]:
    """Every way, replayed from a CUDA graph; one after the other, since each graph keeps its memory."""
    images = options.batches[0]
    seconds: dict[str, float] = {}
    for name in ("guarded", *PEERS):
        (run,) = _runs((name,), images, options.side, backward=backward).values()
        with _released():
            try:
                seconds |= race({name: _recorded(run).replay}, options.rounds, hidden=False)
            except torch.OutOfMemoryError:
                _left_out(name)
    yield from _against(f"{_part(images, backward=backward)}, CUDA graph", seconds, TRAINING if backward else FORWARD)


def of_compiled(options: argparse.Namespace, *, backward: bool) -> Iterator[Row]:
    """By torch.compile, plain and guarded, beside the plain encoder as it is called."""
    images = options.batches[0]
    part = f"{_part(images, backward=backward)}, torch.compile"
    runs = _runs(("plain", "guarded"), images, options.side, backward=backward, compiled=True)
    yield from _compiled(part, runs, _runs(("plain",), images, options.side, backward=backward)["plain"], options)


def of_compiled_blocks(options: argparse.Namespace) -> Iterator[Row]:
    """The same, forward and backward, of an attention and the block behind it: the encoder's take minutes to compile.

    The guarded gradients are first compared with those of the guarded blocks as they are called.
    """
    chosen = {name: torch.nn.Sequential(*WAYS[name](_unscaled()).blocks[3][1:3]) for name in ("plain", "guarded")}
    compiled = {name: torch.compile(blocks) for name, blocks in chosen.items()}
    channels = chosen["plain"][0].norm.weight.numel()
    x = torch.randn((options.batches[0], channels, 24, 24), device=GPU, dtype=torch.float16)
    wanted, found = (_gradient(ways["guarded"], x) for ways in (chosen, compiled))
    error = float((found - wanted).norm() / wanted.norm())
    if not error < 0.02:
        raise SystemExit(f"compiled, the guarded blocks' gradients differ by {error}")
    print(f"compiled blocks: the gradients agree within {error:.1e}", file=sys.stderr, flush=True)
    runs: dict[str, Run] = {name: partial(_run, blocks, x, backward=True) for name, blocks in compiled.items()}
    part = f"two blocks, forward and backward, {options.batches[0]}x{channels}x24x24, torch.compile"
    yield from _compiled(part, runs, partial(_run, chosen["plain"], x, backward=True), options)


def _unscaled() -> Any:  # noqa: ANN401  # a class of timm, here and below
    """An encoder whose layer scales, of 1e-5 at first, let gradients through."""
    model = encoder()
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale.gamma"):
            parameter.data.fill_(0.5)
    return model


def _gradient(model: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """Of all weights, in one row."""
    generator = torch.Generator(GPU).manual_seed(0)
    result = model(x)
    (result.float() * torch.randn(result.shape, device=GPU, generator=generator)).sum().backward()
    gradients = [parameter.grad.float().flatten() for parameter in model.parameters()]
    model.zero_grad()
    return torch.cat(gradients)


def _compiled(part: str, runs: dict[str, Run], eager: Run, options: argparse.Namespace) -> Iterator[Row]:
    for name, run in runs.items():
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        taken = time.perf_counter() - started
        alone = race({name: run}, options.rounds, hidden=False)[name]
        print(f"{part}: {name}: {taken:.0f} s to compile, then {alone * 1e3:.1f} ms", file=sys.stderr, flush=True)
    runs |= {"plain, not compiled": eager}
    yield from _called(part, runs, options, {}, peers=("plain", "plain, not compiled"))


def _part(images: int, *, backward: bool) -> str:
    return f"encoder, {'forward and backward' if backward else 'forward'}, {images} images"


def _called(
    part: str, runs: dict[str, Run], options: argparse.Namespace, targets: Mapping[str, float],
    peers: Iterable[str] = PEERS,
) -> Iterator[Row]:  # fmt: skip
    """Memory of each way by itself, which also warms it up, then the time of all in turns."""
    peaks: dict[str, int] = {}
    for name in list(runs):
        with _released():
            try:
                peaks[name] = _peak(runs[name])
            except torch.OutOfMemoryError:
                _left_out(name)
                del runs[name]
    yield from _memory(part, peaks, peers)
    yield from _against(part, race(runs, options.rounds, hidden=False, seconds=options.seconds), targets, peers)


def _against(
    part: str, seconds: Mapping[str, float], targets: Mapping[str, float], peers: Iterable[str] = PEERS
) -> Iterator[Row]:
    """The guarded time beside each peer's."""
    for peer in peers:
        if peer in seconds and "guarded" in seconds:
            ratio, target = seconds["guarded"] / seconds[peer], targets.get(peer)
            yield Row(
                f"{part}, against {peer}",
                f"{seconds['guarded'] * 1e3:.1f} ms",
                f"{seconds[peer] * 1e3:.1f} ms",
                ratio,
                "" if target is None else f"<= {target}",
                None if target is None else ratio <= target,
            )


def _memory(part: str, peaks: Mapping[str, int], peers: Iterable[str]) -> Iterator[Row]:
    for peer in peers:
        if peer in peaks and "guarded" in peaks:
            ratio, asked = peaks["guarded"] / peaks[peer], peer == "plain"
            yield Row(
                f"{part}, peak memory beyond the weights, against {peer}",
                f"{peaks['guarded'] / MIB:,.0f} MiB",
                f"{peaks[peer] / MIB:,.0f} MiB",
                ratio,
                "<= 1.02" if asked else "",
                ratio <= 1.02 if asked else None,
            )


def _runs(names: Iterable[str], images: int, side: int, *, backward: bool, compiled: bool = False) -> dict[str, Run]:
    """What calls each of the ways, with weights and images of its own."""
    runs: dict[str, Run] = {}
    for name in names:
        model = WAYS[name](encoder())
        x = torch.randn((images, 3, side, side), device=GPU, dtype=next(model.parameters()).dtype)
        runs[name] = partial(_run, torch.compile(model) if compiled else model, x, backward=backward)
    return runs


def encoder() -> Any:  # noqa: ANN401
    """The image encoder in float16, on the GPU, its weights random and the same each time."""
    return copy.deepcopy(_original())


@cache
def _original() -> Any:  # noqa: ANN401
    import timm  # noqa: PLC0415  # the statistics do without

    return timm.create_model("mobilenetv5_300m_enc", pretrained=False).to(GPU, torch.float16).eval()


def _guarded(model: Any) -> Any:  # noqa: ANN401
    guard(model)
    return model


def upcast(model: Any) -> Any:  # noqa: ANN401
    """The published way: the convolutions inside ConvNormAct in float32, weights and inputs cast on the fly."""
    for module in model.modules():
        if type(module).__name__ == "ConvNormAct":
            module.conv.forward = _upcast_forward(module.conv)
    return model


def _upcast_forward(conv: Any) -> Callable[[torch.Tensor], torch.Tensor]:  # noqa: ANN401
    return lambda x: in_float32(conv, x).to(x.dtype)


WAYS: dict[str, Callable[[Any], Any]] = {
    "guarded": _guarded,
    "plain": lambda model: model,
    "upcast": upcast,
    "float32": lambda model: model.float(),
}


def _run(model: Any, x: torch.Tensor, *, backward: bool) -> None:  # noqa: ANN401
    with torch.set_grad_enabled(backward):
        result = model(x)
        if backward:
            result.float().mean().backward()
            for parameter in model.parameters():
                parameter.grad = None


def _recorded(run: Run) -> torch.cuda.CUDAGraph:
    """Warmed up on another stream first, as torch asks where gradients are recorded."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def _peak(run: Run) -> int:
    """Most bytes that the second run takes beyond what was there."""
    run()
    torch.cuda.synchronize()
    before = int(torch.cuda.memory_allocated())
    torch.cuda.reset_peak_memory_stats()
    run()
    return int(torch.cuda.max_memory_allocated()) - before


@contextmanager
def _released() -> Iterator[None]:
    """Gives unused memory back to the GPU behind what is done, whatever becomes of it."""
    try:
        yield
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _left_out(name: str) -> None:
    print(f"{name}: left out, the GPU's memory does not hold it", file=sys.stderr, flush=True)
