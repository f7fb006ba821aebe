"""What a running model writes: the peak of every module's output, and of what attention and sums write inside.

Names are those of the declared values, but for the prefix: the module as transformers has it.
"""

from __future__ import annotations

import tempfile
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import write
from networks import stats_of
from tiny_models import answers, bright, load, pixels
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gemma_doctor.architectures import Model, identify
from gemma_doctor.architectures.bounds import Prover
from gemma_doctor.architectures.inequalities import Bound

_MAGNITUDES = tuple(
    f"{projections}.{index}|times the magnitude"
    for projections in ("altup_projections", "altup_unembed_projections")
    for index in range(3)
)
_INSIDE: dict[str, dict[str, tuple[str, ...]]] = {
    "Gemma2DecoderLayer": {"add": ("after attention",)},
    "Gemma2ForCausalLM": {"div": ("lm_head|",)},
    "Gemma2Attention": {
        "add": ("query rotated", "key rotated"),
        "bmm": ("scores", "mix of values"),
        "div": ("scores",),
    },
    "Gemma2MLP": {"mul": ("gate * up",)},
    "Gemma3DecoderLayer": {"add": ("after attention",)},
    "Gemma3ForCausalLM": {"div": ("lm_head|",)},
    "Gemma3Attention": {
        "add": ("query rotated", "key rotated"),
        "bmm": ("scores", "mix of values"),
    },
    "Gemma3MLP": {"mul": ("gate * up",)},
    "SiglipEncoderLayer": {"add": ("after attention",)},
    "SiglipAttention": {"bmm": ("scores", "mix of values")},
    "MultiQueryAttention2d": {"bmm": ("scores", "mix of values")},
    "Gemma3nForCausalLM": {"div": ("lm_head|",)},
    "Gemma3nForConditionalGeneration": {"div": ("lm_head|",)},
    "Gemma3nModel": {"mul_": ("image features * sqrt(channels)",)},
    "Gemma3nTextModel": {"add": ("inputs of the layers",), "mul": ("", *_MAGNITUDES)},
    "Gemma3nTextMLP": {"sub": ("gate less its cutoff",), "mul": ("gate * up",)},
    "Gemma3nTextLaurelBlock": {"add": ("with its input",)},
    "Gemma3nTextAttention": {"add": ("query rotated", "key rotated"), "bmm": ("scores", "mix of values")},
    "Gemma3nTextDecoderLayer": {
        "add": ("", "attention and LAuReL", "after feed-forward"),
        "sub": ("altup|innovation",),
        "add_": ("altup|predictions", "altup|corrected"),
        "mul": ("", "", "", "first stream, scaled", "gate * own input"),  # before: two routers, and the innovation
    },
}
"""Class of a module -> operation -> what its runs in that module write, in order.

"part|what" is what a part writes, and "part|" what becomes of its output.
"""


_SQUARING = frozenset({"RmsNorm2d", "RmsNormAct2d"})
"""Norms of timm that square their input in its own dtype."""


@dataclass(slots=True)
class _Watch:
    """Peaks by name; ``stack`` holds the modules that run, each with how often it ran which operation."""

    peaks: dict[str, float] = field(default_factory=dict)
    stack: list[tuple[str, str, dict[str, int]]] = field(default_factory=list)

    def note(self, name: str, tensor: torch.Tensor) -> None:
        """Keep the largest magnitude; NaN and infinities count as infinite."""
        peak = float(tensor.double().abs().nan_to_num(nan=float("inf")).max()) if tensor.numel() else 0.0
        self.peaks[name] = max(self.peaks.get(name, 0.0), peak)

    def operation(self, name: str, result: object) -> None:
        """An operation that the innermost module ran; only those with channels count."""
        if not self.stack or not isinstance(result, torch.Tensor) or not result.is_floating_point():
            return
        if result.ndim < 3 or result.shape[-1] == 1:
            return
        module, kind, counts = self.stack[-1]
        order = counts[name]
        counts[name] += 1
        what = _INSIDE.get(kind, {}).get(name, ())
        if order < len(what) and what[order]:
            part, _, own = what[order].rpartition("|")
            name = ".".join(filter(None, (module, part)))
            self.note(f"{name} ({own})" if own else name, result)


class _Operations(TorchDispatchMode):  # type: ignore[misc]  # torch has no types here
    """Every operation that reaches the dispatcher."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result: object = func(*args, **(kwargs or {}))
        self.watch.operation(func.overloadpacket.__name__, result)
        return result


@contextmanager
def _hooked(model: nn.Module, watch: _Watch) -> Iterator[None]:
    hooks = []
    for name, module in model.named_modules():
        kind = type(module).__name__

        def enter(_: object, args: tuple[object, ...], name: str = name, kind: str = kind) -> None:
            watch.stack.append((name, kind, defaultdict(int)))
            if kind in _SQUARING and isinstance(args[0], torch.Tensor):
                watch.note(f"{name} (its input, squared)", args[0])

        def leave(_: object, __: object, output: object, name: str = name) -> None:
            watch.stack.pop()
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor) and first.is_floating_point():
                watch.note(name, first)

        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def written(model: nn.Module, ask: Callable[[Any], object] = answers) -> dict[str, float]:
    """Peak by name, in one run.

    Args:
        model: The model; eager attention writes what the fused one keeps to itself.
        ask: Runs it.
    """
    watch = _Watch()
    with _hooked(model, watch), _Operations(watch):
        ask(model)
    return watch.peaks


def canonical(model: Model, name: str) -> set[str]:
    """What a module of transformers may be called in the declarations."""
    module, bracket, rest = name.partition(" (")
    names = {model.canonical(f"{module}.", layout).removesuffix(".") for layout in (None, *model.layouts)}
    return {f"{one}{bracket}{rest}" for one in names}


def run(config: Mapping[str, Any], tensors: Mapping[str, Any], dtype: torch.dtype) -> dict[str, float]:
    """The peak of everything that the model of these weights writes, by canonical name."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), tensors, {**config, "dtype": "float32"})
        loaded = load(path, dtype)
    assert loaded.complaints == ()
    loaded.model.set_attn_implementation("eager")  # the fused kernels keep the scores to themselves
    for module in loaded.model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    model, found = identify(config), dict[str, float]()
    for image in (pixels, bright):
        for name, peak in written(loaded.model, partial(answers, image=image)).items():
            for known in canonical(model, name):
                found[known] = max(peak, found.get(known, 0.0))
    return found


def exact_bounds(model: Model, tensors: Mapping[str, Any], *, by_channel: bool = True) -> dict[str, float]:
    """What is proved in exact arithmetic, by name.

    Args:
        model: The declared model.
        tensors: Its weights.
        by_channel: Whether vectors are known element by element; else only their extremes are.
    """
    doubles = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    vectors = {name: values for name, values in doubles.items() if by_channel and values.ndim == 1}
    elements = {name: array("d", values.tobytes()) for name, values in vectors.items()}
    prover = Prover({name: stats_of(values) for name, values in doubles.items()}, "exact", elements)
    proofs = {value.name: prover.bound(value.source) for value in model.values}
    return {name: proof.peak for name, proof in proofs.items() if isinstance(proof, Bound)}
