"""What else makes Gemma run where there is only float16: infinities, distance to float32, time and memory, beside ours.

Usage: python benchmarks/gpu_peers.py SICK MENDED [--device cuda|cpu] [--modality text|image ...] [--out FILE.json]

SICK is a checkpoint folder, MENDED what ``gemma-doctor repair`` made of it (benchmarks/gpu_loop.py builds both). Every
contestant answers the same inputs, forward only; the reference is SICK in float32. Rows are printed as soon as they are
measured, then as a Markdown table, which also goes beside --out. Times are medians of warm runs, without TF32, as on a
T4. One model is in memory at a time; at most --budget seconds are spent on the repeats of a row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.choices import MODALITIES, Modality
from gemma_doctor.errors import UsageError
from gemma_doctor.kernels.guards.guarding import guard, unguard
from gemma_doctor.verify import machine
from gemma_doctor.verify.bench import Bench
from gemma_doctor.verify.drift import drift
from gemma_doctor.verify.inputs import Batch, batch
from gemma_doctor.verify.loading import Subject, read_config
from gemma_doctor.verify.measures import Measures, Request

REPEATS = 7
CLAMP = torch.finfo(torch.float16).max - 1000
"""Where transformers clamps T5's hidden states in float16 (modeling_t5.py, T5Block.forward)."""

HEADER = """\
| {modality} | modules with inf or NaN | KL to float32, nats | top-1 | forward ms | peak GB |
| --- | ---: | ---: | ---: | ---: | ---: |"""

Handles = list[RemovableHandle]


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant with one kind of input.

    Attributes:
        modality: The input.
        way: The contestant.
        broken: Modules that returned an inf or a NaN.
        kl: Kullback-Leibler divergence from the float32 logits in nats; None where it is not finite.
        top1: Share of positions with the same most likely token.
        seconds: Median of the warm forward passes.
        peak: Largest memory that tensors took, in bytes; None on a CPU.
    """

    modality: str
    way: str
    broken: int
    kl: float | None
    top1: float
    seconds: float
    peak: int | None

    def cells(self) -> str:
        """The line of the table."""
        kl = "not finite" if self.kl is None else f"{self.kl:.1e}"
        peak = "" if self.peak is None else f"{self.peak / 1e9:.1f}"
        return f"| {self.way} | {self.broken:,} | {kl} | {self.top1:.1%} | {1000 * self.seconds:,.0f} | {peak} |"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run.

    Attributes:
        name: What the table calls it.
        dtype: What the weights are cast to.
        mended: Whether it runs the mended checkpoint.
        applied: What is done to the loaded model, taken back at the end.
    """

    name: str
    dtype: torch.dtype
    mended: bool = False
    applied: Callable[[nn.Module], Any] = lambda _: _nothing()


@dataclass(frozen=True, slots=True)
class Contest:
    """What every way runs.

    Attributes:
        bench: Where.
        batches: The inputs.
        budget: Seconds for the repeats of a row.
        true: The logits of the first way that ran, by input: the reference.
    """

    bench: Bench
    batches: Sequence[Batch]
    budget: float
    true: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, model: nn.Module, way: Way) -> Iterator[Row]:
        """One way with every input."""
        with way.applied(model):
            for inputs in self.batches:
                forward = partial(self.bench.forward, model, inputs, way.dtype)
                with _broken(model) as broken:
                    logits = forward().logits.cpu()
                reference = self.true.setdefault(inputs.modality, logits)
                distance = drift(reference, logits.to(self.bench.device))
                seconds, peak = self._timed(forward)
                yield Row(inputs.modality, way.name, len(broken), distance.kl, distance.top1, seconds, peak)

    def _timed(self, forward: Callable[[], object]) -> tuple[float, int | None]:
        """Median of the warm passes in seconds, and the largest memory in bytes; fewer passes where they are slow."""
        self._settle()
        if self.bench.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        forward()
        times: list[float] = []
        while not times or (len(times) < REPEATS and sum(times) < self.budget):
            self._settle()
            started = time.perf_counter()
            forward()
            self._settle()
            times.append(time.perf_counter() - started)
        return statistics.median(times), machine.peak_memory(self.bench.device)

    def _settle(self) -> None:
        if self.bench.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sick", type=Path)
    parser.add_argument("mended", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--modality", action="append", choices=MODALITIES, help="default: text and image")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--budget", type=float, default=15.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    bench = Bench(Measures(device=arguments.device), machine.find(arguments.device), 0)
    request = Request(length=arguments.seq_len, side=arguments.image_size)
    rows: list[Row] = []
    with torch.no_grad(), machine.without_tf32(0):
        for row in _compare(bench, (arguments.sick, arguments.mended), arguments.modality, request, arguments.budget):
            print(f"{row.modality}: {row.cells()}", flush=True)
            rows.append(row)
            _write(rows, arguments.out)
    print(f"\n{machine.name(bench.device)}, torch {torch.__version__}\n\n{_tables(rows)}")


def _write(rows: Sequence[Row], out: Path | None) -> None:
    """What is measured so far."""
    if out is not None:
        out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
        out.with_suffix(".md").write_text(f"{_tables(rows)}\n")


def _tables(rows: Sequence[Row]) -> str:
    return "\n\n".join(_table(rows, modality) for modality in dict.fromkeys(row.modality for row in rows))


def _table(rows: Sequence[Row], modality: str) -> str:
    lines = [row.cells() for row in rows if row.modality == modality]
    return "\n".join([HEADER.format(modality=modality), *lines])


def _compare(
    bench: Bench, folders: tuple[Path, Path], modalities: Sequence[Modality] | None, request: Request, budget: float
) -> Iterator[Row]:
    """Every way with every input; ways that share weights share a load. A way that fails is named and passed over."""
    sick, mended = (read_config(open_checkpoint(folder)) for folder in folders)
    wanted = modalities or [one for one in ("text", "image") if one in sick.modalities]
    contest = Contest(bench, [batch(sick, modality, request) for modality in wanted], budget)
    for load in _loads(sick.config.model_type):
        with _loaded(bench, mended if load[0].mended else sick, load[0].dtype) as model:
            for way in load:
                try:
                    yield from contest.rows(model, way)
                except (RuntimeError, UsageError) as error:
                    print(f"{way.name} failed: {error}", flush=True)


def _loads(family: str) -> tuple[tuple[Way, ...], ...]:
    """The ways, those that share their weights together; the guard comes last on its model."""
    half = torch.float16
    clamped = Way("float16, clamped at 64504 as transformers' T5", half, applied=_clamped)
    if family == "gemma3n":
        upcast = Way("float16, ConvNormAct in float32 (published; 116 of 282)", half, applied=_float32_convolutions)
    else:
        upcast = Way("float16, residual stream in float32 (published)", half, applied=_float32_residual)
    return (
        (Way("float32", torch.float32),),
        (Way("bfloat16", torch.bfloat16),),
        (Way("float16", half), clamped, upcast, Way("float16, `guard`", half, applied=_guarded)),
        (Way("float16, repaired checkpoint", half, mended=True),),
    )


@contextmanager
def _loaded(bench: Bench, subject: Subject, dtype: torch.dtype) -> Iterator[nn.Module]:
    started = time.perf_counter()
    with bench.model(subject, dtype) as model:
        print(f"loaded {subject.folder.name} in {dtype}: {time.perf_counter() - started:.1f} s", flush=True)
        yield model


@contextmanager
def _broken(model: nn.Module) -> Iterator[set[str]]:
    """While it lasts, names the modules that return an inf or a NaN."""
    seen: set[str] = set()

    def see(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and not bool(output.isfinite().all()):
            seen.add(name)

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: see(name, output))
        for name, module in model.named_modules()
    ]
    with _held(handles):
        yield seen


@contextmanager
def _held(handles: Handles) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _nothing() -> Any:  # noqa: ANN401  # a context that holds no hook
    return _held([])


@contextmanager
def _guarded(model: nn.Module) -> Iterator[None]:
    guard(model)
    try:
        yield
    finally:
        unguard(model)


def _mapped(change: Callable[[Tensor], Tensor], output: Any) -> Any:  # noqa: ANN401  # what a module may return
    if isinstance(output, tuple):
        return tuple(_mapped(change, one) for one in output)
    return change(output) if isinstance(output, Tensor) and output.is_floating_point() else output


def _after(module: nn.Module, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
    return module.register_forward_hook(lambda _module, _inputs, output: _mapped(change, output))


def _before(module: nn.Module, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
    return module.register_forward_pre_hook(lambda _module, inputs: _mapped(change, inputs))


def _of_class(model: nn.Module, *names: str) -> Iterator[nn.Module]:
    for module in model.modules():
        if type(module).__name__ in names:
            yield module


def _clamped(model: nn.Module) -> Any:  # noqa: ANN401  # a context
    """Hidden states brought back to 64504, as transformers does for T5 where they are infinite.

    Behind every convolution and every layer, and what the second half of a decoder layer reads.
    """

    def clamp(hidden: Tensor) -> Tensor:
        return hidden.clamp(-CLAMP, CLAMP)

    layers = ("Gemma3DecoderLayer", "Gemma3nTextDecoderLayer", "SiglipEncoderLayer", "Conv2d", "Conv2dSame")
    handles = [_after(module, clamp) for module in _of_class(model, *layers)]
    middles = [layer.pre_feedforward_layernorm for layer in _of_class(model, *layers[:2])]
    return _held([*handles, *(_before(norm, clamp) for norm in middles if isinstance(norm, nn.Module))])


@contextmanager
def _float32_convolutions(model: nn.Module) -> Iterator[None]:
    """Every ConvNormAct of the image encoder in float32, its input cast up and its output cast down."""
    modules = list(_of_class(model, "ConvNormAct"))
    for module in modules:
        module.float()
    handles = [_before(module, Tensor.float) for module in modules] + [
        _after(module, Tensor.half) for module in modules
    ]
    try:
        with _held(handles):
            yield
    finally:
        for module in modules:
            module.half()


def _float32_residual(model: nn.Module) -> Any:  # noqa: ANN401  # a context
    """Gemma 3's residual stream in float32: whatever writes it gives float32, and what reads it casts down.

    transformers' norms compute in float32 and give the dtype that they read.
    """
    handles: Handles = [_after(module, Tensor.float) for module in _of_class(model, "Gemma3TextScaledWordEmbedding")]
    handles += [_after(module, Tensor.half) for module in _of_class(model, "Gemma3RotaryEmbedding")]
    for layer in _of_class(model, "Gemma3DecoderLayer"):
        parts: Mapping[str, nn.Module] = dict(layer.named_children())
        handles += [_after(parts[f"{name}_layernorm"], Tensor.half) for name in ("input", "pre_feedforward")]
        handles += [_before(parts[f"post_{name}_layernorm"], Tensor.float) for name in ("attention", "feedforward")]
    final = (text.norm for text in _of_class(model, "Gemma3TextModel"))
    handles += [_after(norm, Tensor.half) for norm in final if isinstance(norm, nn.Module)]
    return _held(handles)


if __name__ == "__main__":
    main()
