"""What tracing costs on a GPU: a float16 training step of real-size Gemma 3n E2B, plain, traced, and hooked.

Usage: python benchmarks/gpu_trace.py [--json FILE] [--only WORD] [--profile]

Prints a Markdown table: the step as it is, the same under a dispatch mode that does nothing, under one that views pass
by, with every operation measured and the first that is not finite looked for (recorded in Python, and as `verify` does
it; both must say the same), and with a hook on every module that asks for isinf of its output and waits for the answer,
as scripts do (forward only: hooks see nothing of the backward pass). Times are medians of five after one that warms
up, in turns: the host's pace changes by a third within a minute. Weights are random. ``--only`` takes the rows whose
name holds the word. ``--profile`` prints for each row instead where a traced step's time goes, beside the plain one's.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dispatching import Empty
from gpu_models import build
from inputs import E2B_CONFIG
from torch import nn
from trace_profile import compare

from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.verify.bench import Bench
from gemma_doctor.verify.blame import first_bad
from gemma_doctor.verify.events import Events
from gemma_doctor.verify.inputs import Batch, batch
from gemma_doctor.verify.loading import read_config
from gemma_doctor.verify.machine import waiting, without_tf32
from gemma_doctor.verify.measures import Measures, Request
from gemma_doctor.verify.native import NativeTrace
from gemma_doctor.verify.passing import views_pass
from gemma_doctor.verify.places import Places
from gemma_doctor.verify.tracing import Trace

LOSS_SCALE = 1024.0
ROUNDS = 5
TOKENS, LONG = (512, 2048, 4096), 8192
DEVICE = torch.device("cuda", 0)

Forward = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: seconds, bytes, outputs."""

    what: str
    plain: float
    empty: float
    passing: float
    traced: float
    python: float
    hooked_forward: float
    plain_forward: float
    traced_forward: float
    outputs: int
    plain_peak: int
    traced_peak: int

    def cells(self) -> str:
        """The line."""
        steps = (self.plain, self.empty, self.passing, self.python, self.traced)
        times = (*steps, self.plain_forward, self.traced_forward, self.hooked_forward)
        milliseconds = " | ".join(f"{1000 * seconds:,.0f}" for seconds in times)
        return (
            f"| {self.what} | {self.outputs:,} | {milliseconds} | {self.traced / self.plain:.2f} | "
            f"{self.traced_forward / self.plain_forward:.2f} | {self.hooked_forward / self.plain_forward:.2f} | "
            f"{self.plain_peak / 1e9:.1f} | {self.traced_peak / 1e9:.1f} |"
        )


HEADER = """\
| float16 step | outputs | plain ms | empty mode ms | empty mode, views pass ms | traced in Python ms | traced ms | \
forward ms | traced forward ms | hooked forward ms | traced / plain | forward: traced / plain | \
forward: hooked / plain | peak GB | traced peak GB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch, without_tf32(0):
        folder = build(Path(scratch) / "e2b", E2B_CONFIG, lambda _, values: values)
        if not arguments.profile:
            print(HEADER)
        rows = []
        for row in _rows(folder, arguments.only, profile=arguments.profile):
            print(row.cells(), flush=True)
            rows.append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps([{key: getattr(row, key) for key in row.__slots__} for row in rows]))


def _rows(folder: Path, only: str, *, profile: bool) -> Iterator[Row]:
    subject = read_config(open_checkpoint(folder))
    for checkpointing in (False, True):
        bench = Bench(Measures(device="cuda", checkpointing=checkpointing), DEVICE, 0)
        with bench.model(subject, torch.float16) as model:
            places = Places.of(model)
            for what, forward in _forwards(bench, model, subject).items():
                if only not in what:
                    continue
                steps = Steps(bench, model, places, forward)
                with _survive(what):
                    if profile:
                        compare(what, steps.plain, steps.traced)
                    else:
                        yield _row(what, steps)


def _forwards(bench: Bench, model: nn.Module, subject: Any) -> dict[str, Forward]:  # noqa: ANN401
    """The forward pass of each row, by its name."""
    if bench.measures.checkpointing:
        return {f"text, {LONG:,} tokens, layers checkpointed": _step(bench, model, subject, "text", LONG)}
    texts = {f"text, {tokens:,} tokens": _step(bench, model, subject, "text", tokens) for tokens in TOKENS}
    image = _step(bench, model, subject, "image", 64)
    return {
        **texts,
        "text of 64 tokens and a 768 px image": image,
        "image encoder, 4 images of 768 px": _encoder(model),
    }


@contextmanager
def _survive(what: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        print(f"{what}: {str(error).splitlines()[0]}")
    gc.collect()
    torch.cuda.empty_cache()


def _step(bench: Bench, model: nn.Module, subject: Any, modality: Any, tokens: int) -> Forward:  # noqa: ANN401
    inputs: Batch = batch(subject, modality, Request(length=tokens, side=768))
    return lambda: bench.forward(model, inputs, torch.float16).loss


def _encoder(model: Any) -> Forward:  # noqa: ANN401  # a class of transformers
    tower = model.model.vision_tower.timm_model
    pixels = torch.rand((4, 3, 768, 768), device=DEVICE, dtype=torch.float16)
    return lambda: tower.forward_features(pixels).float().square().mean()


@dataclass
class Steps:
    """The ways to run a step; each is a row's column of the same name.

    Attributes:
        bench: Where it runs.
        model: What runs.
        places: Its places.
        forward: Its forward pass: gives the loss.
        outputs: Those of the last trace.
    """

    bench: Bench
    model: nn.Module
    places: Places
    forward: Forward
    outputs: int = 0

    def plain(self) -> None:
        """As it is."""
        (self.forward() * LOSS_SCALE).backward()
        self.model.zero_grad(set_to_none=True)

    def empty(self) -> None:
        """Under a mode that does nothing."""
        with Empty():
            self.plain()

    def passing(self) -> None:
        """Under a mode that does nothing, and sees no views."""
        with views_pass(), Empty():
            self.plain()

    def traced(self) -> None:
        """With every output measured."""
        self._events(self.bench.trace(self.places))

    def python(self) -> None:
        """The same without the compiled recorder."""
        self._events(Trace(self.places, waiting(DEVICE)))

    def compare(self) -> None:
        """See that both traces say the same."""
        compiled, python = (
            self._events(trace) for trace in (self.bench.trace(self.places), Trace(self.places, waiting(DEVICE)))
        )
        self.outputs = len(compiled)
        for one, other in zip(compiled, python, strict=True):
            if (one.key, one.weights, one.dtype, one.shape) != (other.key, other.weights, other.dtype, other.shape):
                raise SystemExit(f"the traces differ: {one}, {other}")

    def _events(self, trace: Trace | NativeTrace) -> Events:
        with self.places.watching(), trace:
            self.plain()
        events = trace.events()
        first_bad(events, None)  # waits for the figures
        return events

    def plain_forward(self) -> None:
        """Forward only."""
        with torch.no_grad():
            self.forward()

    def traced_forward(self) -> None:
        """Forward only, traced."""
        with self.places.watching(), torch.no_grad(), (trace := self.bench.trace(self.places)):
            self.forward()
        first_bad(trace.events(), None)

    def hooked_forward(self) -> None:
        """Forward only, with a hook on every module."""
        with _hooks(self.model), torch.no_grad():
            self.forward()


def _row(what: str, steps: Steps) -> Row:
    steps.compare()
    ways = (steps.plain, steps.empty, steps.passing, steps.python, steps.traced)
    runs = (*ways, steps.plain_forward, steps.traced_forward, steps.hooked_forward)
    times: dict[str, list[float]] = {run.__name__: [] for run in runs}
    peaks: dict[str, int] = {}
    for _ in range(1 + ROUNDS):
        for run in runs:
            seconds, peaks[run.__name__] = _measured(run)
            times[run.__name__].append(seconds)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    return Row(what, **medians, outputs=steps.outputs, plain_peak=peaks["plain"], traced_peak=peaks["traced"])


@contextmanager
def _hooks(model: nn.Module) -> Iterator[None]:
    """On every module a hook that asks for isinf of its output, and waits for the answer."""

    def hook(_module: nn.Module, _args: object, output: object) -> None:
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                tensor.isinf().any().item()

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _measured(run: Callable[[], None]) -> tuple[float, int]:
    """Seconds, and the largest memory in bytes."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
