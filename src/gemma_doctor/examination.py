"""What is known of a checkpoint once it has been surveyed: what rules judge and passes mend.

It joins the headers, the figures and the architecture's declarations, and answers in both languages: names on disk
and canonical names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from gemma_doctor.architectures import detect_layout, gguf, identify, output_limit
from gemma_doctor.architectures.base import Conv, Expected, KeyLayout, Model, Need
from gemma_doctor.architectures.dtypes import is_float
from gemma_doctor.architectures.ranges import RangeAnalysis, analyse
from gemma_doctor.checkpoint import Checkpoint
from gemma_doctor.choices import Loader, TargetDtype
from gemma_doctor.tensors import MeasuredTensor, TensorInfo, TensorStats

__all__ = ["Examination", "assemble"]


@dataclass(frozen=True)  # no slots, so that what is worked out once can be kept
class Examination:
    """Everything a rule or a pass may look at; neither touches a file.

    Attributes:
        checkpoint: Headers, config and file faults.
        tensors: The measured tensors by their name on disk, in model order.
        model: The architecture's declarations, in canonical names.
        layout: The key layout that the checkpoint uses; None where the family is unknown.
        on_disk: canonical name -> name on disk, for every tensor of the checkpoint's headers.
        selected: Whether the whole checkpoint was selected (no --include / --exclude), so that rules about
            absent tensors may speak. They judge headers, not measurements.
        target_dtype: The dtype the weights are judged for.
        loader: The loader that the tensors must satisfy; llama.cpp for GGUF, whatever was asked for.
        tied_head_equal: Whether a stored lm_head holds the same bytes as the embedding it is tied to; None where
            that was not compared (no such tensor, not selected, or stored in different dtypes).
    """

    checkpoint: Checkpoint
    tensors: Mapping[str, MeasuredTensor]
    model: Model
    layout: KeyLayout | None
    on_disk: Mapping[str, str]
    selected: bool
    target_dtype: TargetDtype
    loader: Loader
    tied_head_equal: bool | None = None

    def canonical(self, name: str) -> str:
        """The canonical name of a tensor on disk."""
        return self.model.canonical(name, self.layout)

    def disk_name(self, canonical: str) -> str:
        """The name on disk of a tensor by its canonical name; of an absent one, what the layout would call it."""
        if canonical in self.on_disk or self.layout is None:
            return self.on_disk.get(canonical, canonical)
        names = (prefix + canonical[len(home) :] for prefix, home in self.layout.prefixes if canonical.startswith(home))
        return next((name for name in names if self.canonical(name) == canonical), canonical)

    def measured(self, canonical: str) -> MeasuredTensor | None:
        """The measured tensor of that canonical name, if there is one."""
        return self.tensors.get(self.on_disk.get(canonical, ""))

    def as_stored(self, conv: Conv) -> Conv:
        """The convolution without its bias, where the checkpoint lacks it."""
        return conv if conv.bias in self.on_disk else replace(conv, bias=None)

    def headers(self) -> Iterator[TensorInfo]:
        """The header entries of the selected tensors, measured or not, in model order."""
        if self.selected:
            yield from self.checkpoint.tensors.values()
        else:
            yield from (tensor.info for tensor in self.tensors.values())

    def lacking(self, *needs: Need) -> Iterator[tuple[str, Expected]]:
        """The expected tensors that the checkpoint certainly does not hold, by canonical name.

        Nothing is certain where only a part was selected, or where an unreadable file without an index may hold
        anything; and what a known file should hold but cannot give is not absent but unreachable.

        Args:
            needs: Why they may be absent: only tensors with one of these needs are meant.
        """
        needed = [(name, expected) for name, expected in self.model.expected.items() if expected.need in needs]
        unreadable = any(fault.kind == "unreadable-shard" for fault in self.checkpoint.faults)
        if not needed or not self.selected or (unreadable and self.checkpoint.index is None):
            return
        known = self.on_disk.keys() | {self.canonical(name) for name in self.checkpoint.unreachable}
        yield from ((name, expected) for name, expected in needed if name not in known)

    def floats(self) -> Iterator[MeasuredTensor]:
        """The measured tensors that hold floating-point numbers, in model order."""
        return (tensor for tensor in self.tensors.values() if is_float(tensor.info.dtype))

    def float16_bound(self) -> Iterator[MeasuredTensor]:
        """The float tensors that become float16 when the model does; none where it is judged for another dtype."""
        if self.target_dtype == "float16":
            yield from (tensor for tensor in self.floats() if not self._stays(tensor.info))

    def _stays(self, tensor: TensorInfo) -> bool:
        """Whether a tensor is left as it is stored where the rest is cast."""
        as_stored, known = self.model.as_stored, self.model.expected.get(self.canonical(tensor.name))
        return (as_stored is not None and as_stored(tensor)) or (known is not None and known.wide)

    @cached_property
    def ranges(self) -> RangeAnalysis:
        """What is proved of every value that a float16 run writes."""
        return analyse(self.model, {self.canonical(name): tensor for name, tensor in self.tensors.items()})


def assemble(
    checkpoint: Checkpoint,
    stats: Mapping[str, TensorStats],
    target_dtype: TargetDtype,
    loader: Loader,
    *,
    whole: bool,
) -> Examination:
    """Everything that is known once the tensors are measured, but for what asks for their bytes again.

    Args:
        checkpoint: Headers, config and file faults.
        stats: The figures of the measured tensors by their name on disk, in model order.
        target_dtype: The dtype the weights are judged for.
        loader: The loader that the tensors must satisfy.
        whole: Whether every tensor of the headers was selected.
    """
    in_gguf = checkpoint.format == "gguf"
    model = gguf.identify(checkpoint.metadata) if in_gguf else identify(checkpoint.config, checkpoint.tensors)
    layout = detect_layout(model, checkpoint.tensors)
    tensors = {
        name: _measured(checkpoint.tensors[name], part, model, model.canonical(name, layout))
        for name, part in stats.items()
    }
    return Examination(
        checkpoint=checkpoint,
        tensors=tensors,
        model=model,
        layout=layout,
        on_disk={model.canonical(name, layout): name for name in checkpoint.tensors},
        selected=whole and not checkpoint.partial,
        target_dtype=target_dtype,
        loader="llama.cpp" if in_gguf else loader,
    )


def _measured(info: TensorInfo, stats: TensorStats, model: Model, canonical: str) -> MeasuredTensor:
    known = model.expected.get(canonical)
    role = known.role if known else model.role(info)
    return MeasuredTensor(info, stats, role, output_limit(model, canonical, role))
