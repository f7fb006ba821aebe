"""What the rules of a verification look at: what was measured, and the checkpoint's declarations beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gemma_doctor.architectures import Model
from gemma_doctor.records import Repair
from gemma_doctor.tensors import TensorInfo
from gemma_doctor.verifications import FailingOp, ModuleDrift, Run, Verification

__all__ = ["Evidence", "collapsed", "plain", "where"]

_ERROR = 0.1
"""A relative error beyond which a module's output says little of what it should be."""

_TIMES = 2.0
"""How many times bfloat16's error float16's must be: its significand has 3 bits more, so a sound one has an eighth."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a rule may look at.

    Attributes:
        verification: What was measured.
        model: The architecture's declarations, in canonical names.
        on_disk: canonical name -> name on disk.
        tensors: The checkpoint's headers, by name on disk.
    """

    verification: Verification
    model: Model
    on_disk: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]

    def tensor(self, name: str) -> TensorInfo | None:
        """The tensor on disk that a parameter comes from; None where none has its name."""
        names = (self.on_disk.get(canonical, canonical) for canonical in sorted(self._canonical(name)))
        return next((self.tensors[known] for known in names if known in self.tensors), None)

    def weight(self, module: str) -> TensorInfo | None:
        """The weight of a module, or of the one that it is a part of."""
        return self.tensor(f"{module}.weight") or self.tensor(f"{module.rpartition('.')[0]}.weight")

    def blamed(self, failure: FailingOp) -> TensorInfo | None:
        """The largest weight that went into an operation, or the one that failed itself."""
        seen = failure.activation
        own = f"{seen.module}.{seen.op}" if seen.phase == "load" else ""
        names = (own, *(operand.name for operand in failure.read))
        return next((found for name in names if (found := self.tensor(name))), None)

    def mends(self, module: str) -> Repair | None:
        """The pass that mends what fails in a module.

        rescale-conv: a convolution, or the norm that reads one. rescale-residual: what owns a tensor that writes a
        residual stream, or a module that such an owner is a part of (the layer that adds it up).
        """
        for name, conv in self.model.convs.items():
            own = [name, conv.norm.weight] if conv.norm else [name]
            if _owned(module, own):
                return Repair("rescale-conv", "eps")
        streams = {value.stream for value in self.model.values}
        for rescaling in self.model.rescalings:
            if rescaling.name in streams and rescaling.refused is None:
                owners = {tensor.rpartition(".")[0] for tensor in rescaling.smaller}
                if self._canonical(module) & {*owners, *(owner.rpartition(".")[0] for owner in owners)}:
                    return Repair("rescale-residual", "eps")
        return None

    def lifts(self, module: str) -> Repair | None:
        """The pass that mends a norm's gradients: rescale-conv, where it reads a convolution and squares in float16."""
        norms = [conv.norm for conv in self.model.convs.values() if conv.norm is not None]
        squaring = [norm.weight for norm in norms if norm.squares_in == "input"]
        return Repair("rescale-conv", "eps") if _owned(module, squaring) else None

    def _canonical(self, module: str) -> set[str]:
        """What the declarations may call a module: a running model has transformers' own names."""
        layouts = (None, *self.model.layouts)
        return {self.model.canonical(f"{module}.", layout).removesuffix(".") for layout in layouts}


def _owned(module: str, tensors: Iterable[str]) -> bool:
    """Whether a module, or one that it is a part of, owns one of these weights."""
    return any(f"{module}.".startswith(tensor.removesuffix("weight")) for tensor in tensors)


def where(failure: FailingOp, run: Run) -> str:
    """``"text run, forward pass: aten.add in model.language_model.layers.3"``."""
    seen = failure.activation
    if seen.phase == "load":
        return f"{run.modality} run: {f'{seen.module}.' if seen.module else ''}{seen.op}, cast to {seen.dtype},"
    return f"{run.modality} run, {seen.phase} pass: {seen.op} in {seen.module or 'the model itself'}"


def plain(number: float) -> str:
    """A magnitude in three digits."""
    return f"{number:,.0f}" if 100 <= number < 1e7 else f"{number:.3g}"  # noqa: PLR2004  # between them it reads well


def collapsed(run: Run) -> Iterator[ModuleDrift]:
    """The modules whose float16 output is finite and no longer what it should be, in the order of execution.

    Zeroed positions, or a relative error beyond 0.1 that is more than twice bfloat16's: bfloat16 has float32's range,
    so what it loses is precision alone, and float16 loses an eighth of that.
    """
    for module in run.modules:
        if module.nonfinite or module.error is None:
            continue
        beside = module.bfloat16_error or 0.0
        if module.collapsed or (module.error > _ERROR and module.error > _TIMES * beside):
            yield module
