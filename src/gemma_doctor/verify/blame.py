"""Which operation failed first, and what led to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gemma_doctor.choices import Modality
from gemma_doctor.tensors import FP16_MAX, TensorStats
from gemma_doctor.verifications import Activation, FailingOp, Operand
from gemma_doctor.verify.dtypes import name_of
from gemma_doctor.verify.events import Event, Events, Key

__all__ = ["Scene", "first_bad", "first_bad_weight", "loaded", "merged"]


_LEAST = -(2.0**127)
"""Where float32 reaches so far down, a mask has been added (its least finite number is nearly -2**128)."""

_HIDING = ("aten.add", "aten.sub", "aten._to_copy")
"""What makes a mask of a least finite number infinite: a score added to it, and the cast of float32's to float16."""

_TELLING = ("eps", "scale", "clip", "cap")
"""Words in the names of constants that bear on overflow."""


def first_bad(events: Events, reference: Mapping[Key, TensorStats] | None) -> Event | None:
    """The first output that is not finite and should be.

    What the reference has there decides: infinities in a mask are meant. An operation that the reference lacks (a cast)
    is excused if it was given such a number, or something that was not finite and is excused itself.

    Args:
        events: A run, in the order of execution.
        reference: The figures at the same places of the reference; None without one.
    """
    excused: set[int] = set()
    hidden: set[int] = set()
    for event in events.nonfinite():
        known = None if reference is None else reference.get(event.key)
        if _hides(event, events, known):
            hidden.add(event.step)
            continue
        if known is not None:
            meant = known.nan + known.inf > 0
        else:
            given = excused if event.stats.nan else excused | hidden  # a row that is hidden whole is a fault
            meant = event.unbounded or any(step in given for step in event.inputs)
        if not meant:
            return event
        excused.add(event.step)
    return None


def _hides(event: Event, events: Events, known: TensorStats | None) -> bool:
    """Whether its infinities are a mask's: transformers hides positions by the least finite number of the dtype.

    A score below -16 added to float16's, -65504, gives -inf, which hides as well; float32's stays finite. Where every
    position of a row is hidden so, the softmax gives NaN, which is a fault and is seen there.
    """
    if event.stats.nan:
        return False
    if known is not None:
        return known.minimum is not None and known.minimum <= _LEAST
    if event.key[2] not in _HIDING:
        return False
    least = [events.stats(step).minimum for step in event.inputs]
    return any(one is not None and (one == -FP16_MAX or one <= _LEAST) for one in least)


def first_bad_weight(seen: Mapping[str, TensorStats], stored: Mapping[str, TensorStats] | None) -> str | None:
    """The first parameter or buffer that is not finite once it was cast, and was before."""
    for name, stats in seen.items():
        before = (stored or {}).get(name)
        if stats.finite < stats.count and (before is None or before.finite == before.count):
            return name
    return None


@dataclass(frozen=True, slots=True)
class Scene:
    """One run and what is known around it.

    Attributes:
        run: Its modality.
        model: The model that ran.
        events: What was recorded, in the order of execution.
        weights: Figures of the model's parameters and buffers.
        reference: Figures at the same places of the reference; None without one.
    """

    run: Modality
    model: nn.Module
    events: Events
    weights: Mapping[str, TensorStats]
    reference: Mapping[Key, TensorStats] | None

    def first_failure(self) -> FailingOp | None:
        """The first operation that failed, with the chain that led to it; None where none did."""
        event = first_bad(self.events, self.reference)
        if event is None:
            return None
        known = None if self.reference is None else self.reference.get(event.key)
        return FailingOp(
            activation=_activation(event, self.run),
            operands=tuple(self._operands(event)),
            config=_numbers(self.model.get_submodule(event.key[1])),
            reference_absmax=None if known is None else known.absmax,
        )

    def _operands(self, event: Event) -> Iterator[Operand]:
        tensors = self.model.state_dict(keep_vars=True)
        for name in event.weights:
            if name in self.weights:
                yield Operand(name, name_of(tensors[name].dtype), tuple(tensors[name].shape), self.weights[name])
        for step in dict.fromkeys(event.inputs):
            made = self.events[step]
            yield Operand(_described(made), made.dtype, made.shape, made.stats)


def loaded(run: Modality, module: str, name: str, tensor: Tensor, stats: TensorStats) -> Activation:
    """A parameter or buffer as a record of the report.

    Args:
        run: The run that it belongs to.
        module: The module that owns it.
        name: Its name there.
        tensor: It, in the dtype that it was cast to.
        stats: Its figures.
    """
    return Activation(run, "load", module, name, 0, 1, name_of(tensor.dtype), tuple(tensor.shape), stats)


def _activation(event: Event, run: Modality) -> Activation:
    phase, module, op, _ = event.key
    return Activation(run, phase, module, op, event.step, 1, event.dtype, event.shape, event.stats)


def merged(events: Iterable[Event], run: Modality) -> list[Activation]:
    """One record for each operation at each place: the outputs of a run that differ only in when they arose."""
    together: dict[tuple[str, ...], list[Event]] = {}
    for event in events:
        together.setdefault((*event.key[:3], event.dtype), []).append(event)
    return [_merged(group, run) for group in together.values()]


def _merged(group: list[Event], run: Modality) -> Activation:
    stats = group[0].stats
    for event in group[1:]:
        stats = stats.merge(event.stats)
    first = _activation(group[0], run)
    return Activation(run, first.phase, first.module, first.op, first.step, len(group), first.dtype, first.shape, stats)


def _described(event: Event) -> str:
    _, module, op, _ = event.key
    return f"{op} of {module}" if module else op


def _numbers(module: nn.Module) -> dict[str, str | int | float | bool | None]:
    """The constants that a module computes with: its eps, its scale, its clipping."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, float) and any(word in name for word in _TELLING)
    }
